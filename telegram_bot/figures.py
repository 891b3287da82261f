"""figures"""

import statistics

from answering.console import UserError
from telegram_bot.worker import resident


def figures(app) -> dict[str, float]:
    """What the owner wants to know, by day of UTC."""
    rows = app.base.execute("SELECT what, sum(n), sum(n * (day = date('now'))) FROM counts GROUP BY what").fetchall()
    found = dict.fromkeys(("frames", "movie", "shortlist", "unknown", "right", "wrong", "wish"), 0)
    found |= {what: n for what, n, _ in rows}
    found["today"] = sum(n for what, _, n in rows if what == "frames")
    found |= {"median_ms": round(statistics.median(app.times)), "queue": len(app.waiting), "films": len(app.films)}
    return found | {"memory_mb": round((app.memory + resident()) / 1e6)}


async def serve_metrics(app, port: int) -> None:
    """The same for Prometheus, on loopback. Raises UserError."""
    from aiohttp import web

    async def answer(_) -> web.Response:
        about = f'movie_bot_info{{architecture="{app.about.architecture}",version="{app.about.commit}"}} 1\n'
        return web.Response(text=about + "".join(f"movie_bot_{name} {n}\n" for name, n in figures(app).items()))

    site = web.Application()
    site.router.add_get("/metrics", answer)
    runner = web.AppRunner(site, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError as error:
        raise UserError(f"--metrics {port}: {error.strerror}; choose another port") from None
