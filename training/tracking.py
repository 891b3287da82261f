"""tracking"""

import secrets
import subprocess
from pathlib import Path

from answering.console import UserError


def git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent.parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:  # no git here
        return "unknown"


def start_wandb(project: str, run: Path, args: dict, resume: bool):
    """A Weights & Biases run. Raises UserError without the package, an account or WANDB_MODE=offline."""
    known = run / "wandb_id"
    if not (resume and known.exists()):
        known.write_text(secrets.token_hex(4))
    try:
        import wandb

        name = known.read_text().strip()
        return wandb.init(project=project, name=run.name, id=name, resume="allow", dir=run, config=args)
    except ImportError:
        raise UserError("--wandb needs its package: pip install wandb", 2) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--wandb: {reason}; log in with `wandb login`, or set WANDB_MODE=offline") from None
