"""Open an image: an OCI image layout or what `docker save` writes, as a tar archive or as a directory.

Sources: OCI image specification 1.1 (image-layout.md, image-index.md, manifest.md, config.md, annotations.md); for
docker-archive the `manifest.json` of Docker's image specification 1.2. Only for one platform: that of the guest.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from kata.architecture import ALL, HOST
from kata.archive.tar import shown
from kata.errors import InvalidArgument
from kata.runtime.images.document import Document, checked_digest, load, parse, read
from kata.runtime.images.model import Image, ImageConfig, Layer
from kata.runtime.images.source import Source, open_source

_MAX_LAYERS = 512
_MAX_INDEXES = 100

_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True)
class _Found:
    """An image of an archive.

    Attributes:
        identity: digest of its manifest, or name of its configuration.
        names: of the image.
        platform: "" if that is left to the image's configuration.
    """

    identity: str
    names: tuple[str, ...]
    platform: str = ""


def open_archive(path: Path, *, reference: str | None = None, platform: str = HOST.platform) -> Image:
    """Open the image at `path`. Close it, or use it as a context manager.

    Layers are not read yet: their digests are checked when they are unpacked.

    Args:
        path: of a tar archive or a directory.
        reference: name of the image; needed if the archive holds several.
        platform: for which the image has to be, such as "linux/arm64".

    Raises:
        NotFound, PermissionDenied: `path` cannot be opened.
        InvalidArgument: it is not an image, a part is missing or does not match its digest, the image is for another
            platform, or there are several and none was chosen.
    """
    source = open_source(path)
    try:
        # Newer versions of `docker save` write both; the layout has digests for everything.
        if source.has("oci-layout") and source.has("index.json"):
            return _open_layout(source, str(path), reference, platform)
        if source.has("manifest.json"):
            return _open_docker(source, str(path), reference, platform)
        raise InvalidArgument(
            f"{source.label} is not a container image: it has neither oci-layout nor manifest.json",
            hint="make one with `docker save`, or with `skopeo copy docker://NAME oci-archive:FILE`",
        )
    except BaseException:
        source.close()
        raise


def _open_layout(source: Source, origin: str, reference: str | None, platform: str) -> Image:
    version = load(source, "oci-layout").text("imageLayoutVersion")
    if version.partition(".")[0] != "1":
        raise InvalidArgument(f"{source.label}: unknown version {shown(version)} of the image layout")
    digest = _choose(source, _manifests(source), reference, platform)
    manifest = _blob(source, digest)
    config = _blob(source, manifest.object("config").digest("digest"))
    blobs = [descriptor.digest("digest") for descriptor in manifest.objects("layers")]
    layers = tuple(
        Layer(blob, diff_id, blob, functools.partial(source.open, _blob_path(blob)))
        for blob, diff_id in zip(blobs, _diff_ids(config, len(blobs), platform), strict=True)
    )
    return Image(origin, digest, _image_config(config), layers, source.close)


def _manifests(source: Source) -> list[_Found]:
    """Each manifest of index.json and of the indexes it lists.

    Raises:
        InvalidArgument: an index is missing or malformed, or there are more than `_MAX_INDEXES`.
    """
    found: list[_Found] = []
    indexes = [(load(source, "index.json"), tuple[str, ...]())]
    # The list grows while it is iterated; an index that many indexes list is read once.
    seen: set[str] = set()
    for index, inherited in indexes:
        for descriptor in index.objects("manifests"):
            kind, digest = descriptor.text("mediaType"), descriptor.digest("digest")
            annotations = descriptor.mapping("annotations")
            names = tuple(annotations[key] for key in _NAME_ANNOTATIONS if key in annotations) or inherited
            if kind in _INDEX_TYPES and digest not in seen:
                seen.add(digest)
                if len(seen) > _MAX_INDEXES:
                    raise InvalidArgument(f"{source.label}: more than {_MAX_INDEXES} indexes")
                indexes.append((_blob(source, digest), names))
            elif kind in _MANIFEST_TYPES:
                platform = descriptor.object("platform")
                both = (platform.text("os"), platform.text("architecture"))
                found.append(_Found(digest, names, "/".join(both) if all(both) else ""))
    return found


def _open_docker(source: Source, origin: str, reference: str | None, platform: str) -> Image:
    label = f"{source.label}: manifest.json"
    entries = Document({"images": parse(read(source, "manifest.json"), label)}, label).objects("images")
    by_config = {entry.text("Config"): entry for entry in entries}
    entries_found = [_Found(config, entry.texts("RepoTags")) for config, entry in by_config.items()]
    name = _choose(source, entries_found, reference, platform)
    content = read(source, name)
    config_label = f"{source.label}: {shown(name)}"
    config = Document(parse(content, config_label), config_label)
    paths = by_config[name].texts("Layers")
    layers = tuple(
        Layer(path, diff_id, None, functools.partial(source.open, path))
        for path, diff_id in zip(paths, _diff_ids(config, len(paths), platform), strict=True)
    )
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Image(origin, digest, _image_config(config), layers, source.close)


def _choose(source: Source, images: list[_Found], reference: str | None, platform: str) -> str:
    """The one image that is meant, of identities with their names.

    Raises:
        InvalidArgument: no image is for this platform or has the name `reference`, or several do.
    """
    found = [image for image in images if image.platform in ("", platform)]
    names = sorted({name for image in found for name in image.names})
    hint = f"it holds: {', '.join(map(shown, names[:10]))}" if names else None
    identities = {image.identity for image in found if reference is None or reference in image.names}
    if len(identities) == 1:
        return identities.pop()
    if not found:
        others = sorted({image.platform for image in images})  # none of them is ""
        raise InvalidArgument(f"{source.label} has no image for {platform}", hint=_hint_at(others))
    if not identities:
        raise InvalidArgument(f"{source.label} has no image named {shown(str(reference))}", hint=hint)
    raise InvalidArgument(f"{source.label} has {len(identities)} images: name one", hint=hint)


def _blob(source: Source, digest: str) -> Document:
    """The document with this digest."""
    return load(source, _blob_path(digest), digest)


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _hint_at(platforms: list[str]) -> str | None:
    """What to do with an image that is for other platforms."""
    known = [one.platform for one in ALL if one.platform in platforms]
    if known:
        return f"kata run --platform {known[0]} runs it, emulated"
    return f"it is for {', '.join(map(shown, platforms[:10]))}" if platforms else None


def _diff_ids(config: Document, layers: int, wanted: str) -> tuple[str, ...]:
    """The digests of the uncompressed layers, after the platform and their number were checked.

    Raises:
        InvalidArgument: the image is for another platform, its digests are not one for each of at most `_MAX_LAYERS`
            layers, or one is not a supported digest.
    """
    platform = f"{config.text('os')}/{config.text('architecture')}"
    if platform != wanted:
        raise InvalidArgument(
            f"{config.label}: image is for {platform[:60]!r}, not for {wanted}", hint=_hint_at([platform])
        )
    rootfs = config.object("rootfs")
    diff_ids = rootfs.texts("diff_ids")
    if len(diff_ids) != layers or layers > _MAX_LAYERS:
        raise InvalidArgument(
            f"{config.label}: {layers} layers and {len(diff_ids)} diff_ids (the maximum is {_MAX_LAYERS})"
        )
    return tuple(checked_digest(diff_id, f"{rootfs.label}: diff_ids") for diff_id in diff_ids)


def _image_config(config: Document) -> ImageConfig:
    wanted = config.object("config")
    return ImageConfig(
        entrypoint=wanted.texts("Entrypoint"),
        cmd=wanted.texts("Cmd"),
        env=wanted.texts("Env"),
        user=wanted.text("User"),
        working_dir=wanted.text("WorkingDir"),
        stop_signal=wanted.text("StopSignal"),
        labels=wanted.mapping("Labels"),
    )
