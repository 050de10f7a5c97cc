"""Asks the status ports of other processes of ours, all at the same time."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple
from urllib.parse import urlsplit

ANSWER_LIMIT_S = 2.0


class Answer(NamedTuple):
    """What a status port said."""

    status: int
    body: bytes


def ask(url: str, *, put: bytes | None = None, limit_s: float = ANSWER_LIMIT_S) -> Answer:
    """GET `url`, or PUT `put` there, directly, whatever proxy is configured.

    Raises OSError or HTTPException when there is no answer.
    """
    where = urlsplit(url)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=limit_s)
    try:
        connection.request("GET" if put is None else "PUT", where.path, put)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()


def ask_all(
    urls: Mapping[str, str], *, put: bytes | None = None, limit_s: float = ANSWER_LIMIT_S
) -> dict[str, Answer]:
    """`ask` each of {name: URL} at the same time; blocks for at most `limit_s` seconds.

    Returns what answered, in the order of `urls`.
    """
    if not urls:
        return {}
    pool = ThreadPoolExecutor(len(urls), thread_name_prefix="ask")
    try:
        asked = {
            name: pool.submit(ask, url, put=put, limit_s=limit_s) for name, url in urls.items()
        }
        done, _ = wait(asked.values(), timeout=limit_s)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    answers = {}
    for name, future in asked.items():
        if future in done:
            with suppress(OSError, HTTPException):
                answers[name] = future.result()
    return answers
