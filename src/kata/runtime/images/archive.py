"""Open an image: an OCI image layout or what `docker save` writes, as a tar archive or as a directory.

Sources: OCI image specification 1.1 (image-layout.md, image-index.md, manifest.md, config.md, annotations.md); for
docker-archive the `manifest.json` of Docker's image specification 1.2. Only linux/amd64: it is what the guest runs.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from kata.archive.tar import shown
from kata.errors import InvalidArgument
from kata.runtime.images.document import Document, checked_digest, load, parse, read
from kata.runtime.images.model import Image, ImageConfig, Layer
from kata.runtime.images.source import Source, open_source

OS, ARCHITECTURE = "linux", "amd64"

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


def open_archive(path: Path, *, reference: str | None = None) -> Image:
    """Open the image at `path`. Close it, or use it as a context manager.

    Layers are not read yet: their digests are checked when they are unpacked.

    Args:
        path: of a tar archive or a directory.
        reference: name of the image; needed if the archive holds several.

    Raises:
        NotFound, PermissionDenied: `path` cannot be opened.
        InvalidArgument: it is not an image, a part is missing or does not match its digest, the image is for another
            platform, or there are several and none was chosen.
    """
    source = open_source(path)
    try:
        # Newer versions of `docker save` write both; the layout has digests for everything.
        if source.has("oci-layout") and source.has("index.json"):
            return _open_layout(source, str(path), reference)
        if source.has("manifest.json"):
            return _open_docker(source, str(path), reference)
        raise InvalidArgument(
            f"{source.label} is not a container image: it has neither oci-layout nor manifest.json",
            hint="make one with `docker save`, or with `skopeo copy docker://NAME oci-archive:FILE`",
        )
    except BaseException:
        source.close()
        raise


def _open_layout(source: Source, origin: str, reference: str | None) -> Image:
    version = load(source, "oci-layout").text("imageLayoutVersion")
    if version.partition(".")[0] != "1":
        raise InvalidArgument(f"{source.label}: unknown version {shown(version)} of the image layout")
    digest = _choose(source, _manifests(source), reference)
    manifest = _blob(source, digest)
    config = _blob(source, manifest.object("config").digest("digest"))
    blobs = [descriptor.digest("digest") for descriptor in manifest.objects("layers")]
    layers = tuple(
        Layer(blob, diff_id, blob, functools.partial(source.open, _blob_path(blob)))
        for blob, diff_id in zip(blobs, _diff_ids(config, len(blobs)), strict=True)
    )
    return Image(origin, digest, _image_config(config), layers, source.close)


def _manifests(source: Source) -> list[tuple[str, tuple[str, ...]]]:
    """Digest and names of each manifest that may be for our platform, from index.json and the indexes it lists.

    Raises:
        InvalidArgument: an index is missing or malformed, or there are more than `_MAX_INDEXES`.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
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
            elif kind in _MANIFEST_TYPES and _may_fit(descriptor.object("platform")):
                found.append((digest, names))
    return found


def _may_fit(platform: Document) -> bool:
    """Whether a descriptor's platform is ours; it may leave it to the image's configuration."""
    return platform.text("os") in ("", OS) and platform.text("architecture") in ("", ARCHITECTURE)


def _open_docker(source: Source, origin: str, reference: str | None) -> Image:
    label = f"{source.label}: manifest.json"
    entries = Document({"images": parse(read(source, "manifest.json"), label)}, label).objects("images")
    by_config = {entry.text("Config"): entry for entry in entries}
    name = _choose(source, [(config, entry.texts("RepoTags")) for config, entry in by_config.items()], reference)
    content = read(source, name)
    config_label = f"{source.label}: {shown(name)}"
    config = Document(parse(content, config_label), config_label)
    paths = by_config[name].texts("Layers")
    layers = tuple(
        Layer(path, diff_id, None, functools.partial(source.open, path))
        for path, diff_id in zip(paths, _diff_ids(config, len(paths)), strict=True)
    )
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Image(origin, digest, _image_config(config), layers, source.close)


def _choose(source: Source, found: list[tuple[str, tuple[str, ...]]], reference: str | None) -> str:
    """The one image that is meant, of identities with their names.

    Raises:
        InvalidArgument: no image is for this platform or has the name `reference`, or several do.
    """
    names = sorted({name for _, given in found for name in given})
    hint = f"it holds: {', '.join(map(shown, names[:10]))}" if names else None
    identities = {identity for identity, given in found if reference is None or reference in given}
    if len(identities) == 1:
        return identities.pop()
    if not found:
        raise InvalidArgument(f"{source.label} has no image for {OS}/{ARCHITECTURE}")
    if not identities:
        raise InvalidArgument(f"{source.label} has no image named {shown(str(reference))}", hint=hint)
    raise InvalidArgument(f"{source.label} has {len(identities)} images: name one", hint=hint)


def _blob(source: Source, digest: str) -> Document:
    """The document with this digest."""
    return load(source, _blob_path(digest), digest)


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _diff_ids(config: Document, layers: int) -> tuple[str, ...]:
    """The digests of the uncompressed layers, after the platform and their number were checked.

    Raises:
        InvalidArgument: the image is for another platform, its digests are not one for each of at most `_MAX_LAYERS`
            layers, or one is not a supported digest.
    """
    platform = f"{config.text('os')}/{config.text('architecture')}"
    if platform != f"{OS}/{ARCHITECTURE}":
        raise InvalidArgument(f"{config.label}: image is for {platform[:60]!r}, not for {OS}/{ARCHITECTURE}")
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
