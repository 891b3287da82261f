"""A Telegram Bot API server on loopback, for tests/test_bot.py and `python bench.py bot`; it misbehaves on request.

    with TelegramServer("123456:TEST", {"frame": jpeg}) as server:   # aiogram: TelegramAPIServer.from_base(server.base)
        server.push(photo_update("frame", user=7))
        server.wait_for(lambda calls: any(call["method"] == "sendMessage" for call in calls), 10)

Entered again it comes back on its port with its updates, as after an outage. local: a folder, in which it leaves files
for the bot, which gets their paths, as telegram-bot-api --local does.
"""

import asyncio
import html
import itertools
import json
import re
import socket
import struct
import threading
import time
from pathlib import Path

from aiohttp import web

BOT = {"id": 123456, "is_bot": True, "first_name": "Film bot", "username": "film_bot"}
MAX_FILE = 20 * 2**20  # getFile refuses what is larger
AS_TEXT = {
    "text",
    "caption",
    "file_id",
    "callback_query_id",
    "photo",
    "document",
    "title",
    "name",
    "description",
    "url",
}
TAG = re.compile(r"</?(b|strong|i|em|u|ins|s|del|code|pre|a|blockquote|tg-spoiler)( [^<>]*)?>")
SAME = "specified new message content and reply markup are exactly the same as a current content and reply markup"
numbers = itertools.count(1)  # message ids, callback ids and the like of the updates built here


class Refusal(Exception):
    """What Telegram answers with 400 Bad Request."""


class TelegramServer:
    """files: {file_id: bytes}. behave(method, params, server) decides how a call is answered; downloads have the method
    "file" and params file_id and path. It gives None for the normal answer or

    (status, dict or bytes[, headers])   this answer; the call is not carried out
    ("sleep", seconds)                   the normal answer, late
    "reset"                              the connection is reset; the call is not carried out
    "cut"                                the normal answer up to its half

    deleted: (chat, message id) of messages that are gone, moved: {group: the supergroup that it became}, connections:
    {id of a connection to a business account: whether the bot may write for it}, sizes: {file_id: bytes that a file is
    said to have}, all as the Bot API has them.

    calls: {"method", "params", "time" (perf_counter at arrival), "result", "status"} each; result is the whole answer
    where it is not ok, and None for a download, a cut connection or a poll that still waits. acknowledged: update ids.
    """

    def __init__(self, token: str, files: dict[str, bytes], behave=None, port: int = 0, local: Path | None = None):
        self.token = token
        self.files = files
        self.behave = behave
        self.port = port
        self.local = local
        self.bot = BOT | {"id": int(token.split(":")[0])}
        self.calls: list[dict] = []
        self.acknowledged: list[int] = []
        self.messages: dict[tuple, dict] = {}  # (chat, message id) of what the bot sent
        self.updates: list[dict] = []  # not acknowledged yet
        self.deleted: set[tuple[int, int]] = set()
        self.moved: dict[int, int] = {}
        self.connections: dict[str, bool] = {}
        self.sizes: dict[str, int] = {}
        self._next_update = 1
        self._message_ids = itertools.count(500_001)
        self._polls = 0
        self._changed = threading.Condition()
        self._loop = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def push(self, *updates: dict) -> int:
        """Append updates, together, each with the next update_id unless it has one; the last id. From any thread."""
        with self._changed:
            for update in updates:
                number = update.get("update_id", self._next_update)
                self._next_update = max(self._next_update, number + 1)
                self.updates.append({**update, "update_id": number})
            self.updates.sort(key=lambda update: update["update_id"])
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake)
        return number

    def wait_for(self, predicate, timeout: float = 10.0) -> bool:
        """Block until predicate(list of calls) is true; False when it is not in time."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: predicate(list(self.calls)), timeout))

    def named(self, method: str) -> list[dict]:
        """The calls of one method, in order."""
        with self._changed:
            return [call for call in self.calls if call["method"] == method]

    def __enter__(self):
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        if not ready.wait(10) or self._loop is None:
            raise RuntimeError(f"no server on 127.0.0.1:{self.port}")
        return self

    def __exit__(self, *_) -> None:
        loop, self._loop = self._loop, None
        loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._woken, self._stop = asyncio.Event(), asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/file/bot{token}/{path:.+}", self._handle)
        app.router.add_route("*", "/bot{token}/{method}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", self.port)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]
            self._loop = asyncio.get_running_loop()
            ready.set()
            await self._stop.wait()
            self._wake()
        finally:
            ready.set()
            await runner.cleanup()

    def _wake(self) -> None:
        """All long polls look again."""
        self._woken.set()
        self._woken = asyncio.Event()

    def _note(self, call: dict, *, new: bool, **values) -> None:
        with self._changed:
            call.update(values)
            if new:
                self.calls.append(call)
            self._changed.notify_all()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        arrived = time.perf_counter()
        match = request.match_info
        if "path" in match:
            method = "file"
            params = {"path": match["path"], "file_id": match["path"].removeprefix("photos/").removesuffix(".jpg")}
        else:
            method, params = match["method"], await read_params(request)
        call = {"method": method, "params": params, "time": arrived, "result": None, "status": None}
        late = method != "getUpdates"  # a poll is in calls when it begins, the others with their result
        if not late:
            self._note(call, new=True)
        how = self.behave(method, params, self) if self.behave else None
        headers = {}
        delay = 0.0
        if isinstance(how, tuple) and how[0] == "sleep":
            how, delay = None, how[1]
        if match["token"] != self.token:
            status, body = 401, refused(401, "Unauthorized")
        elif how == "reset":
            self._note(call, new=late)
            return reset(request)
        elif isinstance(how, tuple):
            status, body, *rest = how
            headers = rest[0] if rest else {}
        elif method == "getUpdates":
            await asyncio.sleep(delay)
            status, body = await self._get_updates(params)
            delay = 0.0
        else:
            status, body = self._carry_out(method, params)
        result = body.get("result") if isinstance(body, dict) and body.get("ok") else body
        result = None if isinstance(body, bytes) or how == "cut" else result
        self._note(call, new=late, result=result, status=status)
        await asyncio.sleep(delay)
        return await send(request, status, body, headers, cut=how == "cut")

    async def _get_updates(self, params: dict) -> tuple[int, dict]:
        """What is pending from offset on; what is below it is acknowledged and gone. A later poll ends an earlier."""
        offset, limit = int(params.get("offset", 0)), min(100, int(params.get("limit", 100)))
        self._polls += 1
        mine, until = self._polls, time.perf_counter() + float(params.get("timeout", 0))
        self._wake()
        while True:
            with self._changed:
                if offset < 0:  # counted from the end
                    offset = self.updates[offset:][0]["update_id"] if self.updates else 0
                self.acknowledged += [update["update_id"] for update in self.updates if update["update_id"] < offset]
                self.updates = [update for update in self.updates if update["update_id"] >= offset]
                found = self.updates[:limit]
            left = until - time.perf_counter()
            if mine != self._polls:
                return 409, refused(409, "Conflict: terminated by other getUpdates request")
            if found or left <= 0 or self._stop.is_set():
                return 200, {"ok": True, "result": found}
            try:
                await asyncio.wait_for(self._woken.wait(), left)
            except TimeoutError:
                continue

    def _carry_out(self, method: str, params: dict) -> tuple[int, dict | bytes]:
        if method == "file":
            data = self.files.get(params["file_id"])
            return (404, refused(404, "Not Found")) if data is None else (200, data)
        if new := self.moved.get(params.get("chat_id")):
            words = "Bad Request: group chat was upgraded to a supergroup chat"
            return 400, refused(400, words, migrate_to_chat_id=new)
        known = {
            "getme": self._get_me,
            "getfile": self._get_file,
            "sendmessage": self._send_message,
            "sendphoto": self._send_photo,
            "editmessagetext": self._edit,
            "editmessagemedia": self._edit,
            "answerguestquery": lambda _: {"inline_message_id": f"guest-{next(numbers)}"},
            "editmessagecaption": self._edit,
            "editmessagereplymarkup": self._edit,
        }
        try:
            return 200, {"ok": True, "result": known.get(method.lower(), lambda _: True)(params)}
        except Refusal as error:
            return 400, refused(400, f"Bad Request: {error}")

    def _get_me(self, _: dict) -> dict:
        more = ("can_read_all_group_messages", "supports_inline_queries", "has_main_web_app")
        return self.bot | {"can_join_groups": True} | dict.fromkeys(more, False)

    def _get_file(self, params: dict) -> dict:
        name = params.get("file_id", "")
        if name not in self.files:
            raise Refusal("wrong file_id or the file is temporarily unavailable")
        size, path = self.sizes.get(name, len(self.files[name])), f"photos/{name}.jpg"
        if self.local:
            path = str(self.local / f"{name}.jpg")
            Path(path).write_bytes(self.files[name])
        elif size > MAX_FILE:
            raise Refusal("file is too big")
        return {"file_id": name, "file_unique_id": f"u-{name}", "file_size": size, "file_path": path}

    def _keep(self, params: dict, **content) -> dict:
        """A message of the bot's, with its buttons."""
        if "chat_id" not in params:
            raise Refusal("chat_id is empty")
        self._check_business(params)
        self._check_reply(params)
        number, markup = next(self._message_ids), checked_markup(params)
        chat = chat_of(params["chat_id"], "private" if params["chat_id"] > 0 else "supergroup")
        message = {"message_id": number, "date": int(time.time()), "chat": chat, "from": self.bot, **content}
        message |= {"reply_markup": markup} if markup else {}
        self.messages[params["chat_id"], number] = message
        return message

    def _check_business(self, params: dict) -> None:
        """Raises Refusal where a message can't be sent for a business account."""
        connection = params.get("business_connection_id")
        if connection is None:
            return
        if connection not in self.connections:
            raise Refusal("BUSINESS_CONNECTION_INVALID")
        if not self.connections[connection]:
            raise Refusal("not enough rights to send messages on behalf of the business account")

    def _check_reply(self, params: dict) -> None:
        """Raises Refusal for a reply to a message that is gone, unless the bot allows that there is none.

        In a topic, or where the chat is named, that is never allowed; for a business account no chat may be named.
        """
        reply = params.get("reply_parameters") or {}
        if params.get("business_connection_id") and "chat_id" in reply:
            raise Refusal("reply to a message in another chat is not supported")
        if (params["chat_id"], reply.get("message_id")) not in self.deleted:
            return
        elsewhere = "chat_id" in reply or "message_thread_id" in params
        if elsewhere or not reply.get("allow_sending_without_reply"):
            raise Refusal("message to be replied not found")

    def _send_message(self, params: dict) -> dict:
        return self._keep(params, text=plain(params, "text"))

    def _send_photo(self, params: dict) -> dict:
        caption = {"caption": plain(params, "caption")} if params.get("caption") else {}
        return self._keep(params, photo=photo_sizes(f"sent-{next(numbers)}"), **caption)

    def _edit(self, params: dict) -> dict:
        """A message that this server does not know is taken for one of the bot's from before."""
        place = (params.get("chat_id"), params.get("message_id"))
        if None in place:
            raise Refusal("message identifier is not specified")
        old = self.messages.get(place)
        if old is None:
            chat = chat_of(place[0], "private" if place[0] > 0 else "supergroup")
            message = {"message_id": place[1], "date": int(time.time()), "chat": chat, "from": self.bot, "text": "?"}
        else:
            message = {key: value for key, value in old.items() if key not in ("reply_markup", "edit_date")}
        if "text" in params and "text" not in message:
            raise Refusal("there is no text in the message to edit")
        message |= {key: plain(params, key) for key in ("text", "caption") if key in params}
        if "media" in params:
            message.pop("text", None)
            message |= {"photo": photo_sizes(f"sent-{next(numbers)}"), "caption": plain(params["media"], "caption")}
        markup = checked_markup(params)
        message |= {"reply_markup": markup} if markup else {}
        if old is not None and message == {key: value for key, value in old.items() if key != "edit_date"}:
            raise Refusal(f"message is not modified: {SAME} of the message")
        self.messages[place] = message | {"edit_date": int(time.time())}
        return self.messages[place]


def refused(status: int, description: str, **parameters) -> dict:
    """Telegram's error object; refused(429, "Too Many Requests: retry after 3", retry_after=3)."""
    found = {"ok": False, "error_code": status, "description": description}
    return found | ({"parameters": parameters} if parameters else {})


def plain(params: dict, key: str) -> str:
    """The text without its tags, or Refusal where Telegram would not take it."""
    text = params.get(key, "")
    if params.get("parse_mode") == "HTML":
        text = TAG.sub("", text)
        if "<" in text:
            raise Refusal(f"can't parse entities: Unsupported start tag at byte offset {text.index('<')}")
        text = html.unescape(text)
    if not text.strip():
        raise Refusal("message text is empty")
    if len(text.encode("utf-16-le")) // 2 > (4096 if key == "text" else 1024):
        raise Refusal("message is too long" if key == "text" else "message caption is too long")
    return text


def checked_markup(params: dict) -> dict | None:
    """The inline keyboard, or Refusal for callback data that Telegram would not take."""
    markup = params.get("reply_markup") or {}
    for button in itertools.chain.from_iterable(markup.get("inline_keyboard", [])):
        if "callback_data" in button and not 1 <= len(button["callback_data"].encode()) <= 64:
            raise Refusal("BUTTON_DATA_INVALID")
        if not button.get("text", "").strip():
            raise Refusal("inline keyboard button text is empty")
    return markup if markup.get("inline_keyboard") else None


def decode(key: str, value):
    """A form's text -> what it stands for; texts stay as they are."""
    if not isinstance(value, str) or key in AS_TEXT:
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


async def read_params(request: web.Request) -> dict:
    """Query, JSON, form or multipart; uploaded files as bytes."""
    found = dict(request.query)
    if request.content_type == "application/json":
        found |= await request.json()
    else:
        form = await request.post()
        found |= {key: value.file.read() if hasattr(value, "file") else value for key, value in form.items()}
    return {key: decode(key, value) for key, value in found.items()}


async def send(request: web.Request, status: int, body, headers: dict, *, cut: bool) -> web.StreamResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    headers = {"Content-Type": kind, **headers}
    if not cut:
        return web.Response(body=data, status=status, headers=headers)
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = len(data)
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


def reset(request: web.Request) -> web.Response:
    if request.transport is not None:
        linger = struct.pack("ii", 1, 0)  # close with RST
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.transport.abort()
    return web.Response()


# updates


def chat_of(number: int, kind: str) -> dict:
    return {"id": number, "type": kind, **({"first_name": "Ann"} if kind == "private" else {"title": "Films"})}


def photo_sizes(file_id: str, file_size: int = 60_000) -> list[dict]:
    """A thumbnail, whose file the server does not have, and the picture."""
    small = {"file_id": f"{file_id}-small", "width": 320, "height": 137, "file_size": 9_000}
    large = {"file_id": file_id, "width": 1280, "height": 546, "file_size": file_size}
    return [size | {"file_unique_id": f"u-{size['file_id']}"} for size in (small, large)]


def entities(text: str) -> list[dict]:
    """Commands and mentions in a text; offsets and lengths in UTF-16 units."""

    def units(part: str) -> int:
        return len(part.encode("utf-16-le")) // 2

    found = []
    for match in re.finditer(r"(?<![\w/@])(/\w+(?:@\w+)?|@\w{3,})", text):
        kind = "bot_command" if match[0].startswith("/") else "mention"
        found.append({"type": kind, "offset": units(text[: match.start()]), "length": units(match[0])})
    return found


def message_update(
    user: int = 1,
    chat: int | None = None,
    *,
    language: str | None = "en",
    chat_type: str = "private",
    date: int | None = None,
    album: str | None = None,
    reply_to: dict | None = None,
    **content,
) -> dict:
    """An update with a message. content: its other fields (document=..., sticker=...); reply_to: an update or message.

    date: Unix time (default: now). album: its media_group_id. chat: by default the user's, in groups -1001.
    """
    sender = {"id": user, "is_bot": False, "first_name": "Ann"} | ({"language_code": language} if language else {})
    chat = chat if chat is not None else user if chat_type == "private" else -1001
    message = {"message_id": next(numbers), "date": int(time.time()) if date is None else date}
    message |= {"chat": chat_of(chat, chat_type), "from": sender}
    message |= {"media_group_id": album} if album else {}
    if reply_to is not None:
        reply_to = reply_to.get("message", reply_to)
        message["reply_to_message"] = {k: value for k, value in reply_to.items() if k != "reply_to_message"}
    for key, about in (("text", "entities"), ("caption", "caption_entities")):
        if content.get(key) and (marks := entities(content[key])):
            message[about] = marks
    return {"message": message | {key: value for key, value in content.items() if value is not None}}


def photo_update(file_id: str, user: int = 1, chat: int | None = None, caption: str | None = None, **more) -> dict:
    """A photo; more: as in message_update, and file_size of the picture as the message states it."""
    sizes = photo_sizes(file_id, more.pop("file_size", 60_000))
    return message_update(user, chat, **{"photo": sizes, "caption": caption} | more)


def text_update(text: str, user: int = 1, chat: int | None = None, **more) -> dict:
    """A text or command; more: as in message_update."""
    return message_update(user, chat, text=text, **more)


def channel_update(**content) -> dict:
    """A post of a channel that the bot is a member of: nobody has written it but the channel."""
    post = message_update(chat=-1002, chat_type="channel", **content)["message"]
    del post["from"]
    return {"channel_post": post | {"sender_chat": post["chat"]}}


def business_update(user: int = 1, customer: int | None = None, connection: str = "business-1", **content) -> dict:
    """A message in the chat of a business account with a customer: by him, or by its owner where user is another."""
    message = message_update(user, customer if customer is not None else user, **content)["message"]
    return {"business_message": message | {"business_connection_id": connection}}


def edited(update: dict, **content) -> dict:
    """The update that an edit of a message brings; content: the fields that are others now."""
    ((kind, message),) = ((key, value) for key, value in update.items() if key != "update_id")
    for key, about in (("text", "entities"), ("caption", "caption_entities")):
        if content.get(key):
            content[about] = entities(content[key])
    return {f"edited_{kind}": message | {"edit_date": int(time.time())} | content}


def callback_update(
    data: str,
    message_id: int,
    user: int = 1,
    chat: int | None = None,
    *,
    language: str = "en",
    chat_type: str = "private",
    gone: bool = False,
    **more,
) -> dict:
    """A press of a button of the bot's message; gone: the message is too old to be there. more: message=..., id=..."""
    message = message_update(user, chat, chat_type=chat_type, language=language, text="?")["message"]
    sender, message = message["from"], message | {"message_id": message_id, "from": BOT}
    if gone:
        message = {"message_id": message_id, "chat": message["chat"], "date": 0}
    query = {"id": str(next(numbers)), "from": sender, "chat_instance": "1", "message": message, "data": data}
    return {"callback_query": query | more}
