"""The control group of a worker: found, made, limited, left; on a tree of plain files, and on the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmm.sandbox import cgroup
from vmm.sandbox.broker import Worker, WorkerStarvedError
from vmm.sandbox.cgroup import ControlGroup
from vmm.sandbox.layers import LAYERS
from vmm.sandbox.settings import JailSettings
from vmm.sandbox.spawn import Process


class Tree:
    """A hierarchy of plain folders and files in the place of the kernel's."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mount = root / "cgroup"
        self.own = self.mount / "user.slice" / "session.scope"
        self.own.mkdir(parents=True)
        self.mountinfo = root / "mountinfo"
        self.membership = root / "membership"
        self.set(f"36 25 0:31 / {self.mount} rw,nosuid - cgroup2 cgroup2 rw", "0::/user.slice/session.scope")
        monkeypatch.setattr(cgroup, "_MOUNTS", str(self.mountinfo))
        monkeypatch.setattr(cgroup, "_MEMBERSHIP", str(self.membership))

    def set(self, mountinfo: str, membership: str) -> None:
        self.mountinfo.write_text(f"22 1 0:20 / / rw - ext4 /dev/root rw\n{mountinfo}\n")
        self.membership.write_text(f"4:memory:/elsewhere\n{membership}\n")

    def enable(self, folder: Path, controllers: str = "cpu memory pids\n") -> None:
        (folder / "cgroup.subtree_control").write_text(controllers)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def test_none_without_the_memory_controller(tree: Tree) -> None:
    assert ControlGroup.create() is None
    tree.enable(tree.mount, "cpu pids\n")
    assert ControlGroup.create() is None


def test_none_without_version_2(tree: Tree) -> None:
    tree.set("36 25 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory", "0::/user.slice")
    assert ControlGroup.create() is None
    tree.membership.write_text("4:memory:/elsewhere\n")
    assert ControlGroup.create() is None


def test_the_nearest_group_that_has_it(tree: Tree) -> None:
    tree.enable(tree.mount)
    tree.enable(tree.own.parent)
    group = ControlGroup.create()
    assert group is not None
    assert Path(group.path).parent == tree.own.parent
    assert Path(group.path).name.startswith(f"pyvmm-{os.getpid()}-")
    group.remove()
    assert not os.path.exists(group.path)
    group.remove()


def test_the_next_one_where_it_may_not(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.enable(tree.mount)
    tree.enable(tree.own.parent)
    make = os.mkdir

    def mkdir(path: str) -> None:
        if str(tree.own.parent) in path:
            raise PermissionError
        make(path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    group = ControlGroup.create()
    assert group is not None
    assert Path(group.path).parent == tree.mount


def test_a_container_sees_its_part_of_the_tree(tree: Tree) -> None:
    tree.set(f"36 25 0:31 /docker/1 {tree.mount} rw - cgroup2 cgroup2 rw", "0::/docker/1/user.slice")
    tree.enable(tree.own.parent)
    group = ControlGroup.create()
    assert group is not None
    assert Path(group.path).parent == tree.own.parent


def test_limits(tree: Tree) -> None:
    tree.enable(tree.mount)
    group = ControlGroup.create()
    assert group is not None
    made = Path(group.path)
    assert group.limit(1 << 20, 3) == "control group, memory.max 1048576, pids.max 3"
    assert (made / "memory.max").read_text() == "1048576"
    assert (made / "memory.swap.max").read_text() == "0"
    assert (made / "pids.max").read_text() == "3"
    assert not group.out_of_memory()
    (made / "memory.events").write_text("low 0\noom 1\noom_kill 0\n")
    assert not group.out_of_memory()
    (made / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert group.out_of_memory()
    (made / "memory.max").unlink()
    (made / "memory.max").mkdir()
    assert group.limit(1 << 20, 3) is None


def test_groups_of_the_dead_are_removed(tree: Tree) -> None:
    tree.enable(tree.mount)
    for name in ("pyvmm-4194304999-1", f"pyvmm-{os.getpid()}-0", "pyvmm-x", "other"):
        (tree.mount / name).mkdir()
    assert ControlGroup.create() is not None
    left = {path.name for path in tree.mount.iterdir()}
    assert "pyvmm-4194304999-1" not in left
    assert {f"pyvmm-{os.getpid()}-0", "pyvmm-x", "other"} <= left


def test_a_group_that_cannot_be_joined_is_left(tree: Tree) -> None:
    """In a tree of files nothing is joined: the file is not there."""
    tree.enable(tree.mount)
    process = Process(LAYERS)
    try:
        assert process.group is None
        assert process.problem == ""
        assert not [path for path in tree.mount.iterdir() if path.name.startswith("pyvmm-")]
    finally:
        process.kill()


def test_death_for_want_of_memory(tree: Tree) -> None:
    """What the kernel would say of it, said by the tree."""
    worker = Worker(Process(LAYERS))
    tree.enable(tree.mount)
    group = worker.process.group = ControlGroup.create()
    assert group is not None
    worker.close_jail(JailSettings())
    assert worker.report.memory.startswith("control group, memory.max")
    (Path(group.path) / "memory.events").write_text("oom_kill 1\n")
    os.kill(worker.process.pid, 9)
    with pytest.raises(WorkerStarvedError):
        worker.receive(float("inf"))


def real() -> str | None:
    """The real hierarchy, whatever controllers it has."""
    found = cgroup._hierarchy()
    return None if found is None else os.path.join(found[0], found[1].lstrip("/"))


def test_a_real_group_is_joined_and_removed() -> None:
    folder = real()
    if folder is None or not os.access(folder, os.W_OK) or os.geteuid() != 0:
        pytest.skip("no control group v2 that may be added to")
    process = Process(LAYERS, group=lambda: ControlGroup(folder))
    try:
        group = process.group
        assert group is not None
        assert Path(group.members).read_text().split() == [str(process.pid)]
    finally:
        process.kill()
    assert not os.path.exists(group.path)
