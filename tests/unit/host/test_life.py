"""Signs of life of real processes, as the kernel tells them. The clock of the looks is turned by hand."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.host import jupyter, sockets
from common.host.life import LEASE_FILE, Life

START = datetime.now(UTC)
WITHIN_S = 20.0


class User:
    """Somebody with processes, and the looks at them."""

    def __init__(self, home: Path) -> None:
        self.home, self.children = home, list[subprocess.Popen[bytes]]()
        self.life = Life(lambda: [child.pid for child in self.children], home)
        self.now = START

    def runs(self, *command: str, **more: object) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(command, **more)  # type: ignore[call-overload]
        self.children.append(child)
        return child

    def python(self, script: str, **more: object) -> subprocess.Popen[bytes]:
        """A program that says `ready` and then waits for a line before it works, and for another before it ends."""
        text = "import sys, socket, time, os\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        text += script + "\nprint('done', flush=True)\nsys.stdin.readline()\n"
        child = self.runs(sys.executable, "-c", text, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more)
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        return child

    def works(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin
        assert child.stdout
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"done\n"

    def look(self, seconds: float = 1.0) -> tuple[str, ...]:
        self.now += timedelta(seconds=seconds)
        return self.life(self.now)

    def ends(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    pipe.close()


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    made = User(tmp_path)
    yield made
    made.ends()


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_machine_without_processes_of_the_user_shows_no_sign_after_its_first_look(user: User) -> None:
    assert user.look() == ("unknown",)
    assert user.look() == ()


def test_sleeping_processes_are_no_sign_of_life(user: User) -> None:
    user.runs("sleep", "60")
    user.look()

    assert user.look() == ()


def test_work_of_a_cpu_is_seen_also_that_of_a_child_that_has_ended(user: User) -> None:
    child = user.python(
        "import subprocess; subprocess.run(['sh', '-c', 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'])"
    )
    user.look()

    user.works(child)

    assert "cpu" in user.look()
    assert user.look() == ()


def test_writing_to_a_disk_is_seen(user: User) -> None:
    child = user.python(
        f"f = open({str(user.home / 'data')!r}, 'wb'); f.write(b'x' * (8 << 20)); f.flush(); os.fsync(f.fileno())"
    )
    user.look()

    user.works(child)

    assert "disk" in user.look()


def test_a_transfer_is_seen_and_only_those_of_the_users_own_connections(user: User) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    threading.Thread(target=_swallow, args=(server,), daemon=True).start()
    child = user.python(
        f"s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'x' * (4 << 20)); time.sleep(0.2)"
    )
    user.look()
    with socket.create_connection(("127.0.0.1", port)) as others:
        others.sendall(b"x" * (4 << 20))
        assert user.look() == ()

        user.works(child)

    assert "network" in user.look(5.0)
    server.close()


def _swallow(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_drain, args=(connection,), daemon=True).start()


def _drain(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass
    connection.close()


def test_the_kernel_counts_the_bytes_of_each_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        there, _ = server.accept()
        port = server.getsockname()[1]
        client.sendall(b"x" * 1000)
        assert there.recv(2000) == b"x" * 1000
        inode = os.fstat(client.fileno()).st_ino

        until(lambda: [c.sent_bytes for c in sockets.connections() if c.inode == inode] in ([1000], [1001]))
        (far,) = [c for c in sockets.connections() if c.inode == os.fstat(there.fileno()).st_ino]
        there.close()

    assert (far.received_bytes, far.local_port) == (1000, port)


def test_input_at_a_terminal_is_seen(user: User) -> None:
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    script = (
        "import os, sys, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\nfor line in sys.stdin: pass"
    )
    user.runs(sys.executable, "-c", script, stdin=slave, stdout=slave)
    until(lambda: user.life.read(START).terminal_read_at.keys() == {name})
    os.utime(name, (1.0, 1.0))  # the kernel renews the stamp at most every 8 seconds
    user.look()
    user.look()
    assert "terminal" not in user.look()

    os.write(master, b"ls\n")
    until(lambda: Path(name).stat().st_atime > 1.0)

    assert "terminal" in user.look()
    os.close(master)
    os.close(slave)


def test_a_running_compiler_is_seen(user: User, tmp_path: Path) -> None:
    compiler = tmp_path / "cc1plus"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", compiler)
    child = user.runs(str(compiler), "60")
    until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "cc1plus\n")
    user.look()

    assert user.look() == ("compile",)


def test_a_lease_holds_until_it_is_over(user: User) -> None:
    lease = user.home / LEASE_FILE
    lease.touch()
    os.utime(lease, (START.timestamp(), START.timestamp() + 3600))
    user.look()

    assert user.look() == ("keep_alive",)
    assert user.look(3600) == ()


SERVER = """
import http.server, json, os, pathlib, sys
folder = pathlib.Path(os.environ["HOME"], ".local/share/jupyter/runtime")
class Face(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        right = self.headers["Authorization"] == "token secret" and self.path == "/lab/api/kernels"
        body = pathlib.Path(os.environ["HOME"], "kernels.json").read_bytes()
        self.send_response(200 if right else 403)
        self.end_headers()
        self.wfile.write(body if right else b"{}")
    def log_message(self, *a): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Face)
folder.mkdir(parents=True, exist_ok=True)
said = {"port": server.server_port, "base_url": "/lab/", "token": sys.argv[1], "url": "http://elsewhere/"}
(folder / "new").write_text(json.dumps(said))
(folder / "new").rename(folder / f"jpserver-{os.getpid()}.json")
server.serve_forever()
"""


def notebook(user: User, kernels: str, token: str = "secret") -> subprocess.Popen[bytes]:
    (user.home / "kernels.json").write_text(kernels)
    script = user.home / "jupyter-lab"
    script.write_text(SERVER)
    child = user.runs(sys.executable, str(script), token, env={**os.environ, "HOME": str(user.home)})
    until(lambda: any(user.home.glob(f".local/share/jupyter/runtime/jpserver-{child.pid}.json")))
    return child


def test_a_kernel_that_executes_something_is_seen_though_it_only_waits(user: User) -> None:
    child = notebook(user, '[{"execution_state": "idle"}, {"execution_state": "busy"}]')

    assert jupyter.busy_kernels([child.pid]) == 1
    (user.home / "kernels.json").write_text('[{"execution_state": "idle"}]')
    assert jupyter.busy_kernels([child.pid]) == 0


def test_a_notebook_server_that_does_not_answer_is_not_idle_and_one_that_refuses_us_is_no_obstacle(user: User) -> None:
    refusing, silent = notebook(user, "[]", token="wrong"), notebook(user, "[]")
    os.kill(silent.pid, signal.SIGSTOP)

    assert jupyter.busy_kernels([refusing.pid]) == 0
    assert jupyter.busy_kernels([silent.pid]) is None
    user.look()
    assert "unknown:kernel" in user.look()


def test_an_answer_that_is_no_list_of_kernels_is_no_information(user: User) -> None:
    child = notebook(user, '{"execution_state": "idle"}')

    assert jupyter.busy_kernels([child.pid]) is None


IN_A_CONTAINER = ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "--")
AS_ANOTHER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
LOOK = """
import sys, pathlib, datetime
from common.host.life import Life
seen = Life(lambda: map(int, sys.argv[1:]), pathlib.Path()).read(datetime.datetime.now(datetime.UTC))
print(len(seen.disk_bytes), len(seen.network_bytes), *seen.missing)
"""


def seen_by_a_containers_root(*pids: int) -> str:
    """Of how many the disk is known, how many connections, and what is not known."""
    words = (*IN_A_CONTAINER, sys.executable, "-c", LOOK, *map(str, pids))
    root = Path(__file__).parents[3]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is anybody")
def test_a_containers_root_sees_what_another_users_service_does(user: User) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        service = user.runs(*AS_ANOTHER, "sleep", "60", stdin=connection)
        until(lambda: Path(f"/proc/{service.pid}").stat().st_uid == 65534)

        assert seen_by_a_containers_root(service.pid) == "1 1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is anybody")
def test_an_agent_of_keys_that_shows_itself_to_nobody_keeps_no_machine_awake(user: User) -> None:
    agent = user.runs("ssh-agent", "-D", "-a", str(user.home / "keys"), stdout=subprocess.DEVNULL)
    until((user.home / "keys").exists)

    assert seen_by_a_containers_root(agent.pid) == "0 0"


def test_processes_that_end_while_they_are_looked_at_change_nothing(user: User) -> None:
    child = user.runs("true")
    child.wait()
    user.look()

    assert user.look() == ()
