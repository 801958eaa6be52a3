# mypy: ignore-errors
from google.protobuf import empty_pb2 as _empty_pb2
from kata.protocols import agent_pb2 as _agent_pb2
from kata.protocols import csi_pb2 as _csi_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Description(_message.Message):
    __slots__ = ["json"]
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class ResizeVolumeRequest(_message.Message):
    __slots__ = ["size", "volume_path"]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    VOLUME_PATH_FIELD_NUMBER: _ClassVar[int]
    size: int
    volume_path: str
    def __init__(self, volume_path: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class VolumeRequest(_message.Message):
    __slots__ = ["volume_path"]
    VOLUME_PATH_FIELD_NUMBER: _ClassVar[int]
    volume_path: str
    def __init__(self, volume_path: _Optional[str] = ...) -> None: ...
