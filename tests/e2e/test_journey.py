"""What HiveFS promises, shown with real processes: nodes lost, client lost, shares damaged, everything offline."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .live import Live, attributes, diff, live, until
from .trees import photos, standard_library

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Eight nodes for all tests here: each has a vault of its own, sees nothing of the others', and starts those nodes
    again that the one before killed.
    """
    root = tmp_path_factory.mktemp("nodes")
    made = Live(root)
    try:
        made.run("up", "--nodes", "8", "--capacity", "4G", timeout=200)
        yield made.hive
    finally:
        made.run("down", check=False, timeout=120)


def copy_in(source: Path, drive: Path) -> Path:
    subprocess.run(["cp", "-a", str(source), str(drive)], check=True, timeout=300)
    return drive / source.name


def test_a_real_tree_survives_any_two_nodes_and_then_the_whole_client(tmp_path: Path, nodes: Path) -> None:
    """Issue items 1 and 2: kill n-k nodes and read without caches; then lose every local byte and come back."""
    tree = photos(tmp_path / "photos", 40)
    library = standard_library(tmp_path / "lib")
    before = {"photos": attributes(tree), "lib": attributes(library)}
    with live(tmp_path, shared=nodes, settings={"node_gone_after_s": 86_400}) as hive:
        copy_in(tree, hive.drive)
        copy_in(library, hive.drive)
        hive.wait(hive.drive, timeout=240)
        hive.becomes(hive.drive / "photos" / "2024-01" / "IMG_0000.CR2", "guaranteed")
        placement = os.getxattr(hive.drive / "photos" / "2024-01" / "IMG_0000.CR2", "user.hivefs.placement").decode()
        assert placement
        hive.kill_node(1)
        hive.kill_node(6)
        hive.drop_caches()
        diff(tree, hive.drive / "photos")
        diff(library, hive.drive / "lib")
        address = hive.json("up", timeout=200)["nodes"][3]["address"]
        hive.umount()
        hive.stop_engine()
        shutil.rmtree(hive.home)
        said = hive.run("recover", "--node", address, "--phrase-file", str(hive.phrase), "--no-password")
        assert "is back" in said.stdout
        hive.run("mount", str(hive.drive))
        diff(tree, hive.drive / "photos")
        diff(library, hive.drive / "lib")
        assert attributes(hive.drive / "photos") == before["photos"]
        assert attributes(hive.drive / "lib") == before["lib"]
        (hive.drive / "after").write_text("written after the recovery")
        hive.wait(hive.drive, timeout=120)
        assert hive.json("check", "--data", timeout=300)["problems"] == 0


def test_damaged_shares_are_detected_read_elsewhere_and_reported(tmp_path: Path, nodes: Path) -> None:
    """Issue item 3: one byte flipped, a share truncated, a share swapped for another."""
    tree = photos(tmp_path / "photos", 6)
    with live(tmp_path, shared=nodes) as hive:
        others = set(hive.node_directories()[2].glob("shares/*/*"))
        copy_in(tree, hive.drive)
        hive.wait(hive.drive)
        ours = set(hive.node_directories()[2].glob("shares/*/*")) - others
        shares = sorted(ours, key=lambda p: -p.stat().st_size)
        assert len(shares) >= 4
        flipped, truncated, swapped, other = shares[:4]
        data = bytearray(flipped.read_bytes())
        data[len(data) // 2] ^= 1
        flipped.write_bytes(data)
        os.truncate(truncated, truncated.stat().st_size - 100)
        swapped.write_bytes(other.read_bytes())
        found = hive.run("check", "--data", "--json", check=False, timeout=300)
        report = json.loads(found.stdout)
        # An audit may have found one first, and repair have made it again meanwhile.
        assert found.returncode == 54 and report["problems"] + hive.engine()["repair"]["repaired"] >= 3
        assert any("damaged" in f["kind"] or "missing" in f["kind"] for f in report["findings"])
        hive.drop_caches()
        diff(tree, hive.drive / "photos")
        hive.wait(hive.drive)
        until(lambda: hive.engine()["repair"]["queue"] == 0)

        def whole() -> bool:
            said = hive.run("check", "--data", "--json", check=False, timeout=300)
            return bool(json.loads(said.stdout)["problems"] == 0)

        until(whole, what="every damaged share made again")


def test_a_killed_node_is_replaced_without_being_asked(tmp_path: Path, nodes: Path) -> None:
    """Issue item 4."""
    tree = photos(tmp_path / "photos", 6)
    with live(tmp_path, shared=nodes, settings={"node_gone_after_s": 3}) as hive:
        others = set(hive.hive.glob("nodes/*/shares/*/*"))
        copy_in(tree, hive.drive)
        hive.wait(hive.drive)
        photo = next((hive.drive / "photos").glob("*/*.CR2"))
        ours = set(hive.hive.glob("nodes/*/shares/*/*")) - others
        held = [sum(path.is_relative_to(directory) for path in ours) for directory in hive.node_directories()]
        hive.kill_node(held.index(max(held)))
        until(lambda: any(n["state"] == "gone" for n in hive.engine()["nodes"]), what="a node given up")
        hive.wait(hive.drive)
        hive.becomes(photo, "guaranteed")
        until(lambda: hive.engine()["repair"]["repaired"] > 0, what="a repair")
        hive.drop_caches()
        diff(tree, hive.drive / "photos")


def test_with_every_node_down_the_drive_works_with_what_is_here(tmp_path: Path, nodes: Path) -> None:
    """Issue item 5: listing, cached reads and writes with all nodes down; placed later."""
    tree = photos(tmp_path / "photos", 4)
    with live(tmp_path, shared=nodes) as hive:
        copy_in(tree, hive.drive)
        hive.wait(hive.drive)
        hive.umount()
        hive.stop_engine()
        hive.kill_all_nodes()
        hive.run("mount", str(hive.drive))
        listed = sorted(p.relative_to(hive.drive / "photos") for p in (hive.drive / "photos").rglob("*"))
        assert listed == sorted(p.relative_to(tree) for p in tree.rglob("*"))
        diff(tree, hive.drive / "photos")  # cached
        assert os.statvfs(hive.drive).f_blocks > 0
        (hive.drive / "offline.txt").write_text("accepted")
        assert hive.level(hive.drive / "offline.txt") == "local"
        hive.run("up", timeout=200)
        hive.wait(hive.drive, timeout=120)
        hive.becomes(hive.drive / "offline.txt", "guaranteed")


def test_unplaced_reads_fail_with_eio_and_the_rest_stays_usable(tmp_path: Path, nodes: Path) -> None:
    """Fewer than k shares: EIO after the deadline, one log line, everything else works."""
    with live(tmp_path, shared=nodes, settings={"read_deadline_s": 2, "node_gone_after_s": 86_400}) as hive:
        (hive.drive / "far").write_bytes(os.urandom(3 << 20))
        hive.wait(hive.drive)
        for number in range(7):  # one share at most is left of the three that hold the file's chunks
            hive.kill_node(number)
        until(lambda: hive.online() == 1, what="nodes offline")
        hive.drop_caches()
        with pytest.raises(OSError) as caught:
            (hive.drive / "far").read_bytes()
        assert caught.value.errno == 5
        assert (hive.drive / "far").stat().st_size == 3 << 20
        (hive.drive / "near").write_text("fine")
        assert (hive.drive / "near").read_text() == "fine"
        hive.run("up", timeout=200)
        until(lambda: hive.online() == 8, what="nodes online")

        def readable() -> bool:
            """Within the two seconds that it may take here, however busy the machine is with the nodes that start."""
            try:
                return len((hive.drive / "far").read_bytes()) == 3 << 20
            except OSError as error:
                assert error.errno == 5
                return False

        until(readable, what="the file of which nothing was placed any more")


def test_nothing_readable_is_left_on_client_or_nodes(tmp_path: Path, nodes: Path) -> None:
    """Sealed at rest: no name and no content by grep in HIVEFS_HOME or on any node; the placing goes on after umount."""
    name, text = "holiday-in-reykjavik", "a sentence that nobody else may read " * 50
    with live(tmp_path, shared=nodes) as hive:
        folder = hive.drive / name
        folder.mkdir()
        (folder / (name + ".txt")).write_text(text)
        os.setxattr(folder / (name + ".txt"), "user.where", name.encode())
        os.symlink(name, folder / "link")
        hive.umount()
        for word in (name, "a sentence that nobody", "user.where"):
            for top in (hive.home, hive.hive):
                found = subprocess.run(
                    ["grep", "-r", "-a", "-l", word, str(top)], capture_output=True, text=True, check=False
                )
                assert found.stdout == "", f"{word!r} is readable in {found.stdout}"

        def drained() -> bool:
            return not hive.status()["engine"]

        until(drained, what="the engine finishing after the unmount")
        hive.run("mount", str(hive.drive))
        assert (folder / (name + ".txt")).read_text() == text
        hive.becomes(folder / (name + ".txt"), "guaranteed")


def test_killed_processes_come_back(tmp_path: Path, nodes: Path) -> None:
    """The engine killed: the drive stays usable and a new engine appears. The mount killed: mounting again heals."""
    with live(tmp_path, shared=nodes) as hive:
        (hive.drive / "one").write_text("1")
        first = hive.engine_pid()
        os.kill(first, 9)
        (hive.drive / "two").write_text("2")
        assert (hive.drive / "one").read_text() == "1"
        until(lambda: (hive.status()["engine"] or {}).get("pid") not in (None, first), what="a new engine")
        fd = os.open(hive.drive / "three", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"3" * 100_000)
        os.fsync(fd)
        pid = hive.mount_pid()
        os.kill(pid, 9)
        with contextlib.suppress(OSError):  # what it was opened in is gone
            os.close(fd)
        until(lambda: not _alive(pid), what="the mount's end")
        hive.run("mount", str(hive.drive))
        assert (hive.drive / "three").read_bytes() == b"3" * 100_000
        assert (hive.drive / "one").read_text() == "1"
        hive.wait(hive.drive)


@pytest.mark.slow
def test_ten_thousand_small_files_make_tens_of_stripes(tmp_path: Path) -> None:
    source = tmp_path / "small"
    source.mkdir()
    for number in range(10_000):
        folder = source / f"{number % 50:02d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:05d}").write_bytes(os.urandom(1024))
    with live(tmp_path) as hive:
        copy_in(source, hive.drive)
        hive.wait(hive.drive, timeout=240)
        stripes = hive.engine()["stripes"]
        assert stripes < 100, f"{stripes} stripes"
        shares = sum(1 for d in hive.node_directories() for _ in d.glob("shares/*/*"))
        assert shares < 600, f"{shares} shares"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_password_protects_the_vault(tmp_path: Path, nodes: Path) -> None:
    hive = Live(tmp_path, hive=nodes)
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("correct horse\n")
    bad.write_text("battery staple\n")
    try:
        hive.run("up", timeout=200)
        hive.run("init", "--password-file", str(good), "--phrase-out", str(hive.phrase))
        wrong = hive.run("mount", "--password-file", str(bad), str(hive.drive), check=False)
        assert wrong.returncode == 12 and "wrong" in wrong.stderr
        hive.run("mount", "--password-file", str(good), str(hive.drive))
        (hive.drive / "x").write_text("y")
        twice = hive.run("mount", "--password-file", str(good), str(tmp_path / "other"), check=False)
        assert twice.returncode in (14, 20) and twice.stderr.count("\n") <= 2
    finally:
        hive.run("umount", check=False)
        hive.stop_engine()


def test_a_full_hive_says_so_at_write_and_loses_nothing(tmp_path: Path) -> None:
    """ENOSPC comes at write(2); what was accepted before is kept and placed once there is room; deleting makes room."""
    with live(tmp_path, nodes=3, capacity="64M") as hive:
        until(lambda: os.statvfs(hive.drive).f_blocks * 4096 < 200 << 20, what="the hive's size in df")
        kept = os.urandom(90 << 20)
        (hive.drive / "kept").write_bytes(kept)
        hive.wait(hive.drive / "kept")
        until(lambda: os.statvfs(hive.drive).f_bavail * 4096 < 64 << 20, what="the new room in df")
        with (hive.drive / "too much").open("wb", buffering=0) as file, pytest.raises(OSError) as caught:
            for _ in range(200):
                file.write(b"x" * (1 << 20))
        assert caught.value.errno == 28
        accepted = (hive.drive / "too much").stat().st_size
        assert (hive.drive / "too much").read_bytes() == b"x" * accepted
        (hive.drive / "kept").unlink()
        until(lambda: os.statvfs(hive.drive).f_bavail * 4096 > 64 << 20, what="room again")
        (hive.drive / "again").write_bytes(kept[: 32 << 20])
        hive.wait(hive.drive)
        assert (hive.drive / "again").read_bytes() == kept[: 32 << 20]
        assert (hive.drive / "too much").stat().st_size == accepted


def test_a_damaged_store_is_named_and_recovery_brings_everything_back(tmp_path: Path, nodes: Path) -> None:
    with live(tmp_path, shared=nodes) as hive:
        (hive.drive / "photo").write_bytes(b"p" * 3_000_000)
        hive.wait(hive.drive)
        address = hive.json("up", timeout=200)["nodes"][0]["address"]
        hive.umount()
        hive.stop_engine()
        data = hive.home / "metadata" / "data.mdb"
        data.write_bytes(b"\x00" * 8192 + data.read_bytes()[8192:])
        failed = hive.run("mount", str(hive.drive), check=False)
        assert failed.returncode == 53 and "recover" in failed.stderr and failed.stderr.count("\n") == 1
        hive.home.rename(tmp_path / "damaged")
        hive.run("recover", "--node", address, "--phrase-file", str(hive.phrase), "--no-password")
        hive.run("mount", str(hive.drive))
        assert (hive.drive / "photo").read_bytes() == b"p" * 3_000_000


@pytest.mark.slow
def test_what_was_placed_with_few_nodes_is_guaranteed_when_the_others_come(tmp_path: Path) -> None:
    """Five of eight nodes are back first: what is written goes to them, and to a sixth one as soon as there is one."""
    with live(tmp_path) as hive:
        (hive.drive / "before.txt").write_text("before")
        hive.wait(hive.drive)
        hive.kill_all_nodes()
        until(lambda: not hive.online(), what="every node offline")
        (hive.drive / "few.txt").write_text("few")
        with contextlib.ExitStack() as stack:
            for directory in hive.node_directories()[:5]:
                command = [sys.executable, "-m", "hivefs", "node", "run", str(directory)]
                node = stack.enter_context(subprocess.Popen(command, env=hive.environment, stdout=subprocess.DEVNULL))
                stack.callback(node.terminate)
            until(lambda: hive.online() == 5, what="five nodes online")
            hive.wait(hive.drive / "few.txt", level="remote")
            hive.becomes(hive.drive / "few.txt", "remote")
            hive.run("up", timeout=200)
            hive.wait(hive.drive, timeout=120)
