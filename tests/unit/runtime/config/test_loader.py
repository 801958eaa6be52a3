"""Finding, reading and checking configuration files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata import installed
from kata.architecture import AMD64, ARM64
from kata.errors import InvalidArgument, KataError, NotFound, PermissionDenied
from kata.runtime.config import loader
from kata.runtime.config.loader import MAX_SIZE, for_architecture, load
from kata.runtime.config.settings import Config


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def memory(mib: int) -> str:
    return f"[hypervisor.qemu]\ndefault_memory = {mib}\n"


class TestLookup:
    def test_without_any_file_the_defaults_hold(self, tmp_path: Path) -> None:
        loaded = load(environ={}, system_paths=(tmp_path / "absent",))
        assert loaded.config == Config()
        assert (loaded.sources, loaded.warnings) == ((), ())

    def test_each_place_yields_to_the_one_before(self, tmp_path: Path) -> None:
        paths = [write(tmp_path / f"{n}.toml", memory(1000 + n)) for n in range(4)]
        explicit, environ, etc, usr = paths

        def found(path: Path | None, env: dict[str, str], system: tuple[Path, ...]) -> Path:
            loaded = load(path, environ=env, system_paths=system)
            assert loaded.config.hypervisor.default_memory == 1000 + paths.index(loaded.sources[0])
            return loaded.sources[0]

        assert found(explicit, {"KATA_CONF_FILE": str(environ)}, (etc, usr)) == explicit
        assert found(None, {"KATA_CONF_FILE": str(environ)}, (etc, usr)) == environ
        assert found(None, {"KATA_CONF_FILE": ""}, (etc, usr)) == etc
        assert found(None, {}, (tmp_path / "absent", usr)) == usr

    def test_links_are_resolved_and_the_real_path_reported(self, tmp_path: Path) -> None:
        real = write(tmp_path / "opt/qemu.toml", memory(512))
        write(tmp_path / "opt/config.d/10-more.toml", memory(600))
        write(tmp_path / "etc/config.d/10-beside-the-link.toml", memory(700))
        link = tmp_path / "etc/configuration.toml"
        link.symlink_to(real)
        loaded = load(link)
        assert loaded.sources == (real, tmp_path / "opt/config.d/10-more.toml")
        assert loaded.config.hypervisor.default_memory == 600

    def test_drop_ins_win_by_name_and_key(self, tmp_path: Path) -> None:
        main = write(tmp_path / "c.toml", memory(512) + 'kernel_params = "main"\n')
        write(tmp_path / "config.d/20.toml", memory(2000))
        write(tmp_path / "config.d/10.toml", memory(1000) + "default_vcpus = 3\n")
        write(tmp_path / "config.d/30.conf", memory(3000))
        write(tmp_path / "config.d/.40.toml", memory(4000))
        loaded = load(main)
        hypervisor = loaded.config.hypervisor
        assert (hypervisor.default_memory, hypervisor.default_vcpus, hypervisor.kernel_params) == (2000, 3, "main")
        assert [source.name for source in loaded.sources] == ["c.toml", "10.toml", "20.toml"]

    def test_an_error_names_the_drop_in_that_has_it(self, tmp_path: Path) -> None:
        main = write(tmp_path / "c.toml", memory(512))
        wrong = write(tmp_path / "config.d/10.toml", memory(-5))
        with pytest.raises(InvalidArgument) as caught:
            load(main)
        assert str(wrong) in caught.value.message

    def test_a_body_is_used_only_without_a_path(self, tmp_path: Path) -> None:
        body = memory(640).encode()
        loaded = load(body=body, environ={"KATA_CONF_FILE": "/absent"})
        assert loaded.config.hypervisor.default_memory == 640
        assert loaded.sources == ()
        path = write(tmp_path / "c.toml", memory(512))
        assert load(path, body=body).config.hypervisor.default_memory == 512

    def test_the_images_directory_moves_the_default_guest(self, tmp_path: Path) -> None:
        hypervisor = load(environ={"KATA_IMAGES": str(tmp_path)}, system_paths=()).config.hypervisor
        assert hypervisor.kernel == tmp_path / "current/vmlinux"
        assert hypervisor.initrd == tmp_path / "current/initrd"
        assert hypervisor.image == tmp_path / "current/root.erofs"
        assert hypervisor.host_programs == tmp_path / "current/host"
        assert hypervisor.valid_guest_paths == (tmp_path / "*/*",)

    def test_an_image_that_came_along_is_used_where_none_was_built(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built, came = tmp_path / "built", tmp_path / "came"
        (came / "current").mkdir(parents=True)
        monkeypatch.setattr(loader, "IMAGES", built)
        monkeypatch.setattr(installed, "IMAGES", came)
        hypervisor = load(environ={}, system_paths=()).config.hypervisor
        assert hypervisor.kernel == came / "current/vmlinux"
        assert hypervisor.valid_guest_paths == (came / "*/*", *Config().hypervisor.valid_guest_paths)
        assert (
            load(environ={"KATA_IMAGES": str(built)}, system_paths=()).config.hypervisor.initrd.parent.parent == built
        )
        (built / "current").mkdir(parents=True)
        assert load(environ={}, system_paths=()).config == Config()

    @pytest.mark.parametrize(
        ("names", "image"),
        [
            ([], "root.erofs"),
            (["initrd", "root.erofs"], "root.erofs"),
            (["initrd", "root.ext4"], "root.ext4"),
            (["initrd", "root.xfs"], "root.xfs"),
            (["initrd"], None),
        ],
    )
    def test_the_default_root_is_what_the_current_image_has(
        self, tmp_path: Path, names: list[str], image: str | None
    ) -> None:
        (tmp_path / "current").mkdir()
        for name in names:
            (tmp_path / "current" / name).touch()
        found = load(environ={"KATA_IMAGES": str(tmp_path)}, system_paths=()).config.hypervisor.image
        assert found == (tmp_path / "current" / image if image else None)

    @pytest.mark.parametrize(
        ("keys", "image"),
        [
            ('initrd = "/i"', None),
            ('initrd = "/i"\nimage = "/r"', Path("/r")),
            ('image = "/r"', Path("/r")),
            ('image = ""', None),
        ],
    )
    def test_an_initrd_without_an_image_is_the_whole_root_as_in_kata(
        self, tmp_path: Path, keys: str, image: Path | None
    ) -> None:
        path = write(tmp_path / "c.toml", f"[hypervisor.qemu]\n{keys}\n")
        assert load(path, environ={}).config.hypervisor.image == image


class TestUnreadable:
    def test_a_file_that_was_asked_for_must_exist(self, tmp_path: Path) -> None:
        for arguments in ({"path": tmp_path / "no"}, {"environ": {"KATA_CONF_FILE": str(tmp_path / "no")}}):
            with pytest.raises(NotFound) as caught:
                load(**arguments)
            assert str(tmp_path / "no") in caught.value.message
            assert caught.value.hint is not None

    def test_a_dangling_system_link_is_not_passed_over(self, tmp_path: Path) -> None:
        link = tmp_path / "configuration.toml"
        link.symlink_to("nowhere")
        with pytest.raises(NotFound):
            load(environ={}, system_paths=(link,))

    def test_a_dangling_drop_in_is_named(self, tmp_path: Path) -> None:
        main = write(tmp_path / "c.toml", "")
        (tmp_path / "config.d").mkdir()
        (tmp_path / "config.d/10.toml").symlink_to("nowhere")
        with pytest.raises(NotFound) as caught:
            load(main)
        assert "10.toml" in caught.value.message

    def test_a_fifo_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(InvalidArgument) as caught:
            load(tmp_path / "fifo")
        assert "not a regular file" in caught.value.message

    def test_a_directory_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument):
            load(tmp_path)

    def test_a_huge_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument) as caught:
            load(write(tmp_path / "c.toml", "#" * (MAX_SIZE + 1)))
        assert "larger than" in caught.value.message

    def test_no_permission(self, tmp_path: Path) -> None:
        path = write(tmp_path / "c.toml", "")
        path.chmod(0)
        user = os.geteuid()
        os.seteuid(user or 65534)  # root reads everything
        try:
            with pytest.raises(PermissionDenied):
                load(path)
        finally:
            os.seteuid(user)


class TestBrokenToml:
    @pytest.mark.parametrize(
        ("body", "place"),
        [
            (b"[runtime]\nenable_debug = yes\n", "line 2, column 16"),
            (b"[hypervisor.qemu", "line 1, column 17"),
            (b"[runtime]\nx = [1,\n", "line 3, column 1"),
            (b"[runtime]\n\xff", "line 2, column 1"),
            (b"[runtime]\n[runtime]\n", "line 2, column"),
            (b"[runtime]\nenable_debug = true\nenable_debug = true\n", "line 3, column"),
        ],
    )
    def test_file_line_and_column_are_named(self, tmp_path: Path, body: bytes, place: str) -> None:
        path = tmp_path / "c.toml"
        path.write_bytes(body)
        with pytest.raises(InvalidArgument) as caught:
            load(path)
        assert caught.value.message.startswith(f"{path}: {place}")
        assert "\n" not in caught.value.message

    @pytest.mark.parametrize("body", [b"a = " + b"[" * 100_000, b"a = " + b"9" * 10_000])
    def test_what_tomllib_does_not_expect(self, body: bytes) -> None:
        with pytest.raises(InvalidArgument) as caught:
            load(body=body)
        assert "broken TOML" in caught.value.message


class TestValues:
    @pytest.mark.parametrize(
        ("section", "line", "expected"),
        [
            ("hypervisor.qemu", "default_memory = 0", "from 128 to"),
            ("hypervisor.qemu", "default_memory = -1", "from 128 to"),
            ("hypervisor.qemu", "default_memory = 99999999999999999999999", "from 128 to"),
            ("hypervisor.qemu", "default_memory = 512.5", "an integer"),
            ("hypervisor.qemu", 'default_memory = "512"', "an integer"),
            ("hypervisor.qemu", "default_memory = true", "an integer"),
            ("hypervisor.qemu", "default_vcpus = -2", "from -1 to 240"),
            ("hypervisor.qemu", "default_vcpus = 241", "from -1 to 240"),
            ("hypervisor.qemu", "default_vcpus = nan", "from -1 to 240"),
            ("hypervisor.qemu", "default_vcpus = inf", "from -1 to 240"),
            ("hypervisor.qemu", "msize_9p = 512001", "(bytes)"),
            ("hypervisor.qemu", 'kernel = "vmlinux"', "absolute path"),
            ("hypervisor.qemu", 'kernel = ""', "absolute path"),
            ("hypervisor.qemu", 'kernel = "/a/../b"', "absolute path"),
            ("hypervisor.qemu", 'kernel = "/a\\u0000b"', "absolute path"),
            ("hypervisor.qemu", 'shared_fs = "nfs"', '"virtio-9p"'),
            ("hypervisor.qemu", 'accelerator = "KVM"', '"auto" or "kvm" or "tcg"'),
            ("hypervisor.qemu", 'cpu_features = "pmu=off -device x"', "CPU features"),
            ("hypervisor.qemu", 'seccompsandbox = "off"', '"on,obsolete=deny,elevateprivileges=deny,'),
            ("hypervisor.qemu", 'kernel_params = "a\\nb"', "one line"),
            ("hypervisor.qemu", "jail_uid_range = 1000", '"FIRST-LAST"'),
            ("hypervisor.qemu", 'jail_uid_range = "1000"', '"FIRST-LAST"'),
            ("hypervisor.qemu", 'jail_uid_range = "2000-1000"', '"FIRST-LAST"'),
            ("hypervisor.qemu", 'jail_uid_range = "0-1000"', "from 1 to 4294967294"),
            ("hypervisor.qemu", 'jail_uid_range = "1000-4294967295"', "from 1 to 4294967294"),
            ("hypervisor.qemu", 'jail_uid_range = "-"', '"FIRST-LAST"'),
            ("hypervisor.qemu", 'enable_annotations = ["("]', "regular expressions"),
            ("hypervisor.qemu", 'enable_annotations = "x"', "a list of"),
            ("hypervisor.qemu", "enable_annotations = [1]", "a list of"),
            ("hypervisor.qemu", "require_kvm = 1", "true or false"),
            ("agent.kata", "dial_timeout = 0", "(seconds)"),
            ("agent.kata", 'kernel_modules = ["../x"]', "modules"),
            ("runtime", 'enable_debug = "yes"', "true or false"),
        ],
    )
    def test_a_wrong_value_names_section_key_value_and_expectation(
        self, section: str, line: str, expected: str
    ) -> None:
        with pytest.raises(InvalidArgument) as caught:
            load(body=f"[{section}]\n{line}\n".encode())
        message = caught.value.message
        assert f"[{section}] {line.partition(' =')[0]} = " in message
        assert expected in message.partition(": expected ")[2]
        assert "\n" not in message
        assert len(message) < 400

    def test_a_long_value_is_cut(self) -> None:
        with pytest.raises(InvalidArgument) as caught:
            load(body=b'[hypervisor.qemu]\nkernel = "%s"' % (b"x" * 100_000))
        assert len(caught.value.message) < 400

    def test_fractions_of_cpus_are_rounded_up(self) -> None:
        assert load(body=b"[hypervisor.qemu]\ndefault_vcpus = 1.2").config.hypervisor.default_vcpus == 2

    @pytest.mark.parametrize("body", [b"runtime = 1", b"hypervisor = []", b"[hypervisor]\nqemu = 1"])
    def test_a_value_where_a_section_belongs(self, body: bytes) -> None:
        with pytest.raises(InvalidArgument) as caught:
            load(body=body)
        assert "expected a section" in caught.value.message

    @pytest.mark.parametrize("key", [r'"a\nb"', r'"\u001b[2J"', f'"{"x" * 5000}"'])
    def test_keys_are_told_on_one_bounded_line(self, key: str) -> None:
        with pytest.raises(InvalidArgument) as caught:
            load(body=f"{key} = 1".encode())
        (warning,) = load(body=f"[runtime]\n{key} = 1".encode()).warnings
        (of_section,) = load(body=f"[{key}]".encode()).warnings
        for told in (caught.value.message, caught.value.hint or "", warning, of_section):
            assert told.isprintable()
            assert len(told) < 400
        assert caught.value.hint is not None

    def test_require_kvm_and_emulation_contradict_each_other_across_files(self, tmp_path: Path) -> None:
        main = write(tmp_path / "c.toml", '[hypervisor.qemu]\naccelerator = "tcg"\n')
        write(tmp_path / "config.d/10.toml", "[hypervisor.qemu]\nrequire_kvm = true\n")
        with pytest.raises(InvalidArgument) as caught:
            load(main)
        assert "10.toml" in caught.value.message
        write(tmp_path / "config.d/20.toml", '[hypervisor.qemu]\naccelerator = "auto"\n')
        assert load(main).config.hypervisor.require_kvm


class TestWarnings:
    @pytest.mark.parametrize(
        ("body", "warning"),
        [
            (b"[hypervisor.qemu]\ndefault_memroy = 5", "default_memroy: unknown key, did you mean default_memory?"),
            (b"[hypervisor.qemu]\nenable_numa = true", "enable_numa: known to Kata, has no effect here"),
            (b"[hypervisor.qemu]\ndial_timeout = 5", "dial_timeout: unknown key, it belongs to [agent.kata]"),
            (b"[runtime]\nzzzzzzzz = 5", "zzzzzzzz: unknown key"),
            (b"[agent.kata.mem_agent]\nx = 5", "mem_agent: known to Kata, has no effect here"),
            (b"[image]\nservice_offload = true", "[image]: known to Kata, has no effect here"),
            (b"[hypervisor.firecracker]\npath = 1", "[hypervisor.firecracker]: known to Kata, has no effect here"),
            (b"[hypervisor.quemu]\npath = 1", "[hypervisor.quemu]: unknown section, did you mean [hypervisor.qemu]?"),
        ],
    )
    def test_names_without_effect(self, body: bytes, warning: str) -> None:
        loaded = load(body=body)
        assert loaded.config == Config()
        assert len(loaded.warnings) == 1
        assert loaded.warnings[0].startswith("config body: ")
        assert loaded.warnings[0].endswith(warning)


@pytest.mark.parametrize("value", ["default_memory", "default_memory = "])
def test_every_failure_is_one_of_ours(value: str) -> None:
    with pytest.raises(KataError):
        load(body=f"[hypervisor.qemu]\n{value}".encode())


class TestArchitectures:
    def test_vms_of_another_one_have_its_qemu_and_its_image(self, tmp_path: Path) -> None:
        (tmp_path / "images/current-arm64").mkdir(parents=True)
        (tmp_path / "images/current-arm64/root.ext4").touch()
        text = memory(700) + 'path = "/opt/qemu"\nkernel = "/opt/vmlinux"\ncpu_features = "-avx2"\n'
        configured = load(write(tmp_path / "c.toml", text), environ={}).config
        config = for_architecture(configured, ARM64, {"KATA_IMAGES": str(tmp_path / "images")})
        found = config.hypervisor
        image = tmp_path / "images/current-arm64"
        assert found.architecture is ARM64
        assert (found.path, found.cpu_features) == (Path("/usr/bin/qemu-system-aarch64"), "")
        assert (found.kernel, found.initrd) == (image / "vmlinux", image / "initrd")
        assert (found.image, found.host_programs) == (image / "root.ext4", image / "host")
        assert found.default_memory == 700, "what is not the architecture's stays"
        assert for_architecture(config, ARM64, {}) is config
        back = for_architecture(config, AMD64, {}).hypervisor
        assert (back.path, back.machine_type) == (Path("/usr/bin/qemu-system-x86_64"), "q35")

    def test_a_file_may_be_for_another_one(self, tmp_path: Path) -> None:
        text = '[hypervisor.qemu]\nmachine_type = "virt"\npath = "/usr/bin/qemu-system-aarch64"\n'
        assert load(write(tmp_path / "c.toml", text), environ={}).config.hypervisor.architecture is ARM64
