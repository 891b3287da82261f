"""Git commit and Weights & Biases: what a run is known by elsewhere."""

import secrets
import subprocess
from pathlib import Path

from answering.console import UserError


def git_commit() -> str:
    """The commit of this repository as `git describe` names it, with "-dirty" for changes; "unknown" without git."""
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return "unknown"
    return result.stdout.strip() or "unknown"


def start_wandb(project: str, folder: Path, args: dict, resume: bool):
    """A Weights & Biases run for a run folder, which remembers its id; args: shown there as the configuration.

    Raises UserError without the package, an account or WANDB_MODE=offline.
    """
    id_file = folder / "wandb_id"
    if not (resume and id_file.exists()):
        id_file.write_text(secrets.token_hex(4))
    try:
        import wandb

        run_id = id_file.read_text().strip()
        return wandb.init(project=project, name=folder.name, id=run_id, resume="allow", dir=folder, config=args)
    except ImportError:
        raise UserError("--wandb needs its package: pip install wandb", 2) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--wandb: {reason}; log in with `wandb login`, or set WANDB_MODE=offline") from None
