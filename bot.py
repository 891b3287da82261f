"""A Telegram bot that names the film a frame comes from, on a small host; the model works in a process beside it.

TELEGRAM_BOT_TOKEN=... python bot.py --model export --check     # is everything there? says what is wrong in one line
python bot.py --model export                                    # the token may stand in .env, too
python learn.py --db bot.sqlite --labels labels.csv             # what users said of the answers, for training
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import re
import sys
import time
from pathlib import Path

from aiogram import Bot, exceptions, types
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import PRODUCTION, TelegramAPIServer

from answering.console import UserError, one_line_errors
from telegram_bot.app import App, watch_films
from telegram_bot.connection import Requests, read_token
from telegram_bot.database import KEEP_DAYS, open_base, tidy
from telegram_bot.figures import serve_metrics
from telegram_bot.handlers import make_dispatcher
from telegram_bot.updates import MAX_QUESTION_AGE, log, report
from telegram_bot.wording import load_texts
from telegram_bot.worker import SECONDS, Worker


async def run(args: argparse.Namespace, token: str) -> None:
    """Load the model, ask Telegram who we are, and serve. Raises UserError for what a person can mend."""
    api = TelegramAPIServer.from_base(args.api_base) if args.api_base else PRODUCTION
    bot = Bot(token, session=AiohttpSession(api=api))
    worker = Worker(
        args.model,
        runtime=args.runtime,
        threads=args.threads,
        index=args.index,
        show_users_stills=args.show_users_stills,
    )
    try:
        description = await worker.start()
        known = f"{len(description.films)} films, {description.reason}"
        if args.check:
            print(f"all is well: @{(await bot.me()).username}, {known}")
            return
        base = open_base(args.db)
        app = App(base, token, worker, load_texts(args.titles), args.queue, args.owner, args.keep_days)
        app.set_description(description)
        if args.metrics:
            await serve_metrics(app, args.metrics)
        bot.session.middleware(Requests(app.base))
        log.warning("@%s answers, %s", (await bot.me()).username, known)
        await introduce(bot, app.texts)
        gc.freeze()  # aiogram's thousands of classes: to look through them again would block the loop
        await serve(bot, app)
    except (exceptions.TelegramUnauthorizedError, exceptions.TelegramNotFound):  # 404: it has not a token's shape
        raise UserError("TELEGRAM_BOT_TOKEN: Telegram refuses it; take a new one from @BotFather") from None
    except exceptions.AiogramError as error:
        raise UserError(f"Telegram can't be reached ({type(error).__name__}); check network and --api-base") from None
    finally:
        await worker.stop()
        await bot.session.close()


async def introduce(bot: Bot, texts: dict[str, dict]) -> None:
    """Tell Telegram that we poll, and the commands in each language; English is for all others."""
    await bot.delete_webhook()  # with one, Telegram gives no updates
    for code, words in texts.items():
        commands = [types.BotCommand(command=name, description=text) for name, text in words["commands"].items()]
        await bot.set_my_commands(commands, language_code=None if code == "en" else code)


async def serve(bot: Bot, app: App) -> None:
    """Answer until a signal; then finish the answers in hand, for at most SECONDS."""
    dispatcher = make_dispatcher(app)
    tasks = [asyncio.create_task(tidy(app.base, app.keep_days)), asyncio.create_task(watch_films(app))]
    # nobody waits for the old ones any more, and those whose answer was being sent may have got it
    app.base.execute("UPDATE updates SET body = NULL WHERE sending OR time < ?", (time.time() - MAX_QUESTION_AGE,))
    for (body,) in app.base.execute("SELECT body FROM updates WHERE body IS NOT NULL ORDER BY id").fetchall():
        tasks.append(asyncio.create_task(dispatcher.feed_raw_update(bot, json.loads(body), kept=True)))
    await dispatcher.start_polling(bot, polling_timeout=25, close_bot_session=False)
    for task in app.waiting:
        task.cancel()  # they stay in SQLite for the next start
    if app.tasks:
        await asyncio.wait(app.tasks, timeout=SECONDS)
    for task in (*tasks, *app.tasks):
        task.cancel()
    await asyncio.gather(*tasks, *app.tasks, return_exceptions=True)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A Telegram bot that names the film of a frame.")
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--model", default="export", help=f"folder from export.py, .onnx or .xml {default}")
    add("--check", action="store_true", help="load the model, ask Telegram who we are, and exit")
    add("--index", help="the index that index.py made (default: index beside the model, if there is one)")
    add("--owner", type=int, default=0, metavar="ID", help="the Telegram user who may ask for /stats (default: nobody)")
    add("--metrics", type=int, default=0, metavar="PORT", help="port on 127.0.0.1 for Prometheus (default: none)")
    add("--db", type=Path, default=Path("bot.sqlite"), help=f"database of answers and verdicts {default}")
    text = f"days until answers, verdicts and what belongs to them are deleted {default}"
    add("--keep-days", type=float, default=KEEP_DAYS, metavar="DAYS", help=text)
    text = "show users' pictures that learn.py added to others as proof (default: words alone)"
    add("--show-users-stills", action="store_true", help=text)
    add("--titles", type=Path, default=Path("titles.csv"), help=f"Russian titles and IMDb ids from scrape.py {default}")
    add("--queue", type=int, default=200, help=f"frames that may wait {default}")
    add("--threads", type=int, default=0, help=f"CPU threads of the model, 0 for all cores {default}")
    text = "onnxruntime takes less memory (default: the faster one)"
    add("--runtime", choices=["openvino", "onnxruntime"], help=text)
    add("--api-base", metavar="URL", help="a Bot API server of your own, --local or not (default: api.telegram.org)")
    add("--feedback", type=Path, metavar="CSV", help=argparse.SUPPRESS)  # both went to learn.py
    add("--wishes", action="store_true", help=argparse.SUPPRESS)
    return parser


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a usage error, or raise UserError for what is elsewhere now."""
    if args.queue < 1 or args.threads < 0:
        parser.error("--queue must be 1 or more, --threads 0 or more")
    if not args.keep_days > 0:
        parser.error(f"--keep-days {args.keep_days:g}: must be more than 0")
    if not 0 <= args.metrics <= 65535:
        parser.error("--metrics must be a port, up to 65535")
    if args.api_base and not re.match(r"https?://[^/]", args.api_base):
        parser.error(f"--api-base {args.api_base}: expected http://HOST:PORT or https://...")
    if args.feedback:
        raise UserError(f"--feedback is now: python learn.py --db {args.db} --labels {args.feedback}", 2)
    if args.wishes:
        raise UserError(f"--wishes is now: python learn.py --db {args.db} --wishes", 2)


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    token = read_token(dict(os.environ))
    os.environ.pop("TELEGRAM_BOT_TOKEN", None)  # the worker opens strangers' files
    os.umask(0o077)  # the database holds messages while they wait
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger().handlers[0].addFilter(logging.Filter("bot"))  # words of others may hold names and the token
    try:
        asyncio.run(run(args, token))
    except (UserError, OSError):
        raise
    except Exception as error:
        report(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.modules["__main__"].__file__ = None  # else the worker's process loads this script and aiogram, 135 MB
    sys.exit(main())
