# client.py LIBRARY URL: one request with the placeholder, as the library's manual shows it; what it raises ends the program.
import asyncio, os, sys

library, url = sys.argv[1:]
headers = {"Authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"]}


def with_requests():
    import requests

    requests.get(url, headers=headers).raise_for_status()


def with_httpx(http2=False):
    import httpx

    with httpx.Client(http2=http2) as client:
        client.get(url, headers=headers).raise_for_status()


def with_urllib():
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(url, headers=headers)).read()


def with_aiohttp():
    import aiohttp

    async def get():
        async with aiohttp.ClientSession(trust_env=True, raise_for_status=True) as session:
            async with session.get(url, headers=headers) as response:
                await response.read()

    asyncio.run(get())


def with_websockets():
    from websockets.sync.client import connect

    with connect(url, additional_headers=headers) as socket:
        socket.send("hello")
        assert socket.recv() == "hello"


def with_anthropic():
    import anthropic

    client = anthropic.Anthropic(base_url=url, max_retries=0)
    client.messages.create(model="demo", max_tokens=16, messages=[{"role": "user", "content": "hello"}])


def with_openai():
    import openai

    client = openai.OpenAI(base_url=url, api_key=os.environ["ANTHROPIC_AUTH_TOKEN"], max_retries=0)
    client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hello"}])


{
    "requests": with_requests,
    "httpx": with_httpx,
    "httpx-h2": lambda: with_httpx(http2=True),
    "urllib": with_urllib,
    "aiohttp": with_aiohttp,
    "websockets": with_websockets,
    "anthropic": with_anthropic,
    "openai": with_openai,
}[library]()
