"""Counts of what the bot answered and was told, for /stats and for Prometheus."""

import statistics

from answering.console import UserError
from telegram_bot.app import App
from telegram_bot.worker import resident

COUNTED = ("frames", "movie", "shortlist", "unknown", "right", "wrong", "wish")


def read_figures(app: App) -> dict[str, float]:
    """What the owner wants to know; "today" by the day of UTC, all others since the database was made."""
    figures = dict.fromkeys(COUNTED, 0)
    today = 0
    query = "SELECT what, sum(n), sum(n * (day = date('now'))) FROM counts GROUP BY what"
    for what, count, of_today in app.base.execute(query):
        figures[what] = count
        if what == "frames":
            today = of_today
    figures["today"] = today
    figures["median_ms"] = round(statistics.median(app.times))
    figures["queue"] = len(app.waiting)
    figures["films"] = len(app.films)
    figures["memory_mb"] = round((app.model.memory + resident()) / 1e6)
    return figures


async def serve_metrics(app: App, port: int) -> None:
    """The same for Prometheus, on loopback. Raises UserError."""
    from aiohttp import web  # here, since few bots need it

    async def answer(_) -> web.Response:
        contract = app.model.contract
        lines = [f'movie_bot_info{{architecture="{contract.architecture}",version="{contract.commit}"}} 1\n']
        lines += [f"movie_bot_{name} {value}\n" for name, value in read_figures(app).items()]
        return web.Response(text="".join(lines))

    site = web.Application()
    site.router.add_get("/metrics", answer)
    runner = web.AppRunner(site, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError as error:
        raise UserError(f"--metrics {port}: {error.strerror}; choose another port") from None
