"""Public models and datasets, downloaded into a cache: resumed, checked, whole or not there.

    folder     a model's folder in the cache, filled from the Hugging Face hub if it is not yet
    dataset    the files of a dataset in the cache, from their public URLs (data/public.py)
    fetch      one file

$NANOINSTRUCTGPT_CACHE is where (~/.cache/nanoinstructgpt), $HF_ENDPOINT another hub or a mirror.
"""
import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # 0.5, 1.5, 3.2 and 6.4 GB
FILES = ("config.json", "model.safetensors")
HUB = "https://huggingface.co"


def endpoint():
    return os.environ.get("HF_ENDPOINT", HUB)


def folder(name):
    """The folder of one of MODELS. Stops with what to put where if it cannot be downloaded."""
    page = f"{endpoint()}/openai-community/{name}"
    return download(name, {file: f"{page}/resolve/main/{file}" for file in FILES},
                    f"put {' and '.join(FILES)} of {page}")


def dataset(name, urls):
    """The paths of a dataset's files. Stops with what to put where if they cannot be downloaded.

    A file has the last two parts of its URL as its name: other files are called train.jsonl.gz too.
    """
    names = ["-".join(url.split("/")[-2:]) for url in urls]
    path = download(Path("datasets", name), {
        file: url.replace(HUB, endpoint(), 1) for file, url in zip(names, urls)},
        f"name your own copy of {', '.join(urls)} with --file, or put it as {', '.join(names)}")
    return [path / file for file in names]


def download(name, files, by_hand):
    """A folder of the cache with files, {name: URL}, those that are not there yet downloaded."""
    path = Path(os.environ.get("NANOINSTRUCTGPT_CACHE", "~/.cache/nanoinstructgpt"), name)
    path = path.expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        for file, url in files.items():
            fetch(url, path / file)
    except (OSError, http.client.HTTPException) as error:
        raise SystemExit(
            f"error: {path.name} could not be downloaded ({getattr(error, 'reason', error)}): try "
            f"again, which goes on from where it stopped, or {by_hand} into {path}") from None
    return path


def fetch(url, path):
    """Download a file under another name, check its size and sha256, and then give it its own.

    Where the connection breaks it goes on from there, until an attempt brings nothing. Raises
    OSError or HTTPException then, and the next call goes on with what has come. A file that came
    whole and is not what the hub says it is gets deleted.
    """
    part = path.with_name(f"{path.name}.part")
    length = lambda: part.stat().st_size if part.exists() else 0
    with alone(path.with_name(f"{path.name}.lock")):
        while not path.exists():
            before, error = length(), ConnectionError("the connection broke")
            try:
                size, sha256 = receive(url, part, before)
            except (OSError, http.client.HTTPException) as e:
                size, error = float("inf"), e
            if length() < (size or 0):
                if length() <= before:
                    raise error
            elif size not in (None, length()) or sha256 not in (None, digest(part)):
                part.unlink()
                raise OSError(f"{path.name} has another size or sha256 than the hub's: deleted")
            else:
                part.replace(path)


@contextlib.contextmanager
def alone(path):
    """One process at a time: torchrun's ranks all want the same file at once."""
    with open(path, "w") as file:
        with contextlib.suppress(ImportError):  # Windows has no such lock, and no torchrun
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def receive(url, part, start):
    """Append what is missing to the file `part`, which holds `start` bytes.

    Returns the (size, sha256) of the whole as the hub names them; None is what it does not name.
    Raises OSError or HTTPException where nothing can be asked for or the connection breaks.
    """
    hops = Hops()
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"})
    try:
        response = urllib.request.build_opener(hops).open(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is nothing from `start` on: we have it all
            raise
        response = error
    last = lowered(response.headers)
    size = {**last, **hops.said}.get("x-linked-size") or (
        last.get("content-length", "") if response.code == 200 else
        last.get("content-range", "").rpartition("/")[2])
    size = int(size) if size.isdigit() else None
    if response.code != 416:
        start = start if response.code == 206 else 0  # some servers begin at the beginning again
        with response, open(part, "ab" if start else "wb") as file, tqdm(
                desc=url.rpartition("/")[2], total=size, initial=start, unit="B", unit_scale=True,
                disable=None) as bar:
            while block := response.read(2**20):
                file.write(block)
                bar.update(len(block))
    tag = {**last, **hops.said}.get("x-linked-etag", "").strip('"')
    return size, tag if len(tag) == 64 else None  # a small file's tag is a git hash, no sha256


class Hops(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps what the hub says about a file when it points to its store."""

    def __init__(self):
        self.said = {}

    def redirect_request(self, request, file, code, message, headers, url):
        self.said = {**lowered(headers), **self.said}
        return super().redirect_request(request, file, code, message, headers, url)


def lowered(headers):
    return {name.lower(): value for name, value in headers.items()}


def digest(path):
    """The sha256 of a file of any size, as hexadecimal digits."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()
