"""The queue as a service of the user's systemd, which starts it with the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from engine.files import write_text

UNIT = "bone-queue.service"


def install(command: Sequence[str]) -> str:
    """Write a unit that runs `command` in this folder; an existing one that differs stays.

    Returns:
        The unit, and what to do with it.

    Raises:
        FileProblem: there is another one of this name.
    """
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
    path, text = folder / UNIT, unit(command, Path.cwd())
    if not (path.exists() and path.read_text(encoding="utf-8") == text):
        write_text(path, text, overwrite=False)
    return (
        f"{text}\nwritten to {path}\n"
        f"  start it now, and with the machine:  systemctl --user enable --now {UNIT}\n"
        f"  keep it after you log out:           loginctl enable-linger\n"
        f"  what it says:                        journalctl --user -u {UNIT} -f"
    )


def unit(command: Sequence[str], place: Path) -> str:
    """A systemd user unit (systemd.service(5)) that runs a scheduler in the folder `place`.

    A scheduler that ends leaves its experiments to the next one. systemd would end them as well, when it stops the unit
    (KillMode) and when the kernel has killed one of them for memory (OOMPolicy).
    """
    words = [word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") for word in command]
    folder = str(place).replace("%", "%%")
    return f"""[Unit]
Description=Queue of experiments in {folder}

[Service]
WorkingDirectory={folder}
ExecStart={" ".join(f'"{word}"' for word in words)}
KillMode=process
OOMPolicy=continue
SuccessExitStatus=75 130
Restart=on-failure
RestartSec=30

[Install]
WantedBy=default.target
"""
