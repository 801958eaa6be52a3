from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.errors import KataError
from kata.runtime.config.loader import load
from kata.runtime.config.origins import From, lines_of, values
from kata.runtime.config.settings import SECTIONS

DOCUMENT = '''\
# a comment
[hypervisor.qemu]
default_vcpus = 2 # two

kernel_params = """
[not.a.section]
a=1"""
enable_annotations = [
  "default_vcpus", # ]
]
[runtime]
"enable_debug" = true
'''


def test_lines_of_keys() -> None:
    assert lines_of(DOCUMENT) == {
        ("hypervisor", "qemu", "default_vcpus"): 3,
        ("hypervisor", "qemu", "kernel_params"): 5,
        ("hypervisor", "qemu", "enable_annotations"): 8,
        ("runtime", "enable_debug"): 12,
    }


def test_lines_of_dotted_keys_and_inline_tables() -> None:
    text = "hypervisor.qemu.path = '/x'\nagent = { kata = { enable_debug = true } }\n[a.b]\nc.d = 1"
    assert lines_of(text) == {
        ("hypervisor", "qemu", "path"): 1,
        ("agent", "kata", "enable_debug"): 2,
        ("a", "b", "c", "d"): 4,
    }


@given(st.lists(st.sampled_from(["", "# [x]", "[t]", "a = 1", "b = [", "]", '"""', "c = '''", "'''"]), max_size=12))
def test_every_key_of_a_valid_document_has_a_line_of_it(lines: list[str]) -> None:
    text = "\n".join(lines)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found = lines_of(text)
    for path, line in found.items():
        value = document
        for part in path:
            value = value[part]
        assert lines[line - 1].startswith(f"{path[-1]} =")


def test_where_each_value_is_from(tmp_path: Path) -> None:
    main = tmp_path / "configuration.toml"
    main.write_text('[hypervisor.qemu]\ndefault_vcpus = 2\ndefault_memory = 512\nenable_annotations = ["default_.*"]\n')
    drop_in = tmp_path / "config.d/10.toml"
    drop_in.parent.mkdir()
    drop_in.write_text("[hypervisor.qemu]\n\ndefault_memory = 1024\n")
    annotation = "io.katacontainers.config.hypervisor.default_vcpus"
    loaded = load(main, environ={"KATA_IMAGES": str(tmp_path)})
    found = {value.key: value for value in values(loaded, {annotation: "4", "other": "x"}) if value.section[0] == "h"}
    assert len(found) == len(SECTIONS[0].settings)
    for key, expected in {
        "default_vcpus": ("4", From.ANNOTATION, annotation),
        "default_memory": ("1024", From.FILE, f"{drop_in}:3"),
        "enable_annotations": ('["default_.*"]', From.FILE, f"{main}:4"),
        "kernel": (f'"{tmp_path}/current/vmlinux"', From.ENVIRONMENT, "KATA_IMAGES"),
        "machine_type": ('"q35"', From.DEFAULT, ""),
    }.items():
        assert (found[key].toml, found[key].origin, found[key].where) == expected


def test_an_annotation_that_is_not_allowed(tmp_path: Path) -> None:
    with pytest.raises(KataError, match="is not allowed"):
        values(load(environ={}, system_paths=()), {"io.katacontainers.config.hypervisor.default_vcpus": "4"})
