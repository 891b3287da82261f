# the bot; the exported model, the token and the database come from outside: see compose.yaml and docs/bot.md
# for amd64 and arm64: docker buildx build --platform linux/amd64,linux/arm64 .
FROM python:3.13-slim

# requirements-shelf.txt can add films to an index, too: docs/install.md
ARG REQUIREMENTS=requirements-bot.txt
# further packages, such as openvino
ARG EXTRA=""

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2 HOME=/tmp
WORKDIR /app

COPY requirements-bot.txt requirements-shelf.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --only-binary=:all: -r ${REQUIREMENTS} ${EXTRA}

# .dockerignore lets nothing else in
COPY . ./

# a new named volume takes its owner from this folder
RUN install --directory --owner=10001 --group=10001 --mode=700 /data
USER 10001:10001
VOLUME /data

# no HEALTHCHECK: `bot.py --check` loads the model a second time and asks Telegram; a bot that fails ends and is restarted
ENTRYPOINT ["python", "bot.py", "--model", "export", "--titles", "export/titles.csv", "--db", "/data/bot.sqlite"]
