"""A PostgreSQL for tests, in a temporary folder, from the programs that a system's package brings."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def find_programs() -> Path | None:
    """The folder with initdb and pg_ctl, of the newest version; None where there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    in_path = shutil.which("initdb")
    return folders[-1] if folders else in_path and Path(in_path).parent


class Postgres:
    """A server without a network, over a socket in its folder; as another user where the tests run as root."""

    def __init__(self):
        pytest.importorskip("psycopg", reason="needs psycopg: pip install 'psycopg[binary]'")
        self.programs = find_programs()
        if self.programs is None:
            pytest.skip("needs PostgreSQL: apt-get install postgresql")
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short, as the name of a socket must be
        self.user = "nobody" if os.name == "posix" and os.getuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)
        self.count = 0
        self.run("initdb", "-D", "data", "-U", "test", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        self.start()

    def run(self, program: str, *arguments: str) -> None:
        command = [self.programs / program, *arguments]
        log = self.folder / "tests.log"
        with open(log, "a") as out:
            done = subprocess.run(command, cwd=self.folder, user=self.user, stdout=out, stderr=out, timeout=120)
        assert done.returncode == 0, log.read_text()[-2000:]

    def start(self) -> None:
        settings = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off"
        self.run("pg_ctl", "start", "-w", "-D", "data", "-l", "server.log", "-o", settings)

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; "immediate" is as a power cut."""
        self.run("pg_ctl", "stop", "-m", mode, "-D", "data")

    def new_place(self) -> str:
        """postgresql://... of an empty database."""
        import psycopg

        self.count += 1
        name = f"test{self.count}"
        with psycopg.connect(self.place("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.place(name)

    def place(self, database: str) -> str:
        return f"postgresql://test:secret@/{database}?host={self.folder}"

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
