"""Files of the Hugging Face hub through its own library, huggingface_hub (an extra).

    fetch       a file of a repository: from the cache, or from the hub into the cache
    fetch_url   a file that is not on the hub, from its URL

The library shares its cache with its other users, checks sizes, resumes broken downloads, and reads
HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.
"""
import contextlib
import logging
from pathlib import Path

from settings import EXTRAS, extra, stop


class Unavailable(Exception):
    """Why a file is not available, in one line."""


def library(what):
    """The library's module for downloads; stops if not installed. what: needs it."""
    module = extra("huggingface_hub.file_download", f"the download of {what}")
    if not hasattr(module, "RemoteEntryNotFoundError"):  # before 1.0, as transformers 4 wants it
        stop(f"the download of {what} needs a newer huggingface_hub: pip install "
             f"{' '.join(EXTRAS['hf'])}, in an environment without transformers 4")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # we report errors ourselves
    return module


def page(repo, kind="model"):
    """The web page of a repository."""
    return f"{library(repo).constants.ENDPOINT}/{'datasets/' * (kind == 'dataset')}{repo}"


def cache(repo, kind="model"):
    """The folder of a repository in the cache; it need not exist."""
    lib = library(repo)
    return Path(lib.constants.HF_HUB_CACHE, lib.repo_folder_name(repo_id=repo, repo_type=kind))


def fetch(repo, names, kind="model", commit=None):
    """The path of the first of `names` that a repository has; None if it has none of them.

    Cached files are used without asking the hub, so that a complete cache needs no network and may
    be read-only. Files that belong together must have the same commit: pass that of the first.
    Raises Unavailable.
    """
    lib = library(repo)
    try:
        cached = {name: lib.try_to_load_from_cache(repo, name, repo_type=kind, revision=commit)
                  for name in names}  # a path, None, or a marker: no such file
        for path in cached.values():
            if isinstance(path, str):
                return Path(path)
        for name in names:
            if commit is None or cached[name] is None:
                try:
                    # without a network this fails at once, where the download would try for 20 s
                    with contextlib.suppress(lib.RemoteEntryNotFoundError):
                        lib.get_hf_file_metadata(lib.hf_hub_url(repo, name, repo_type=kind,
                                                                revision=commit))
                    return Path(lib.hf_hub_download(repo, name, repo_type=kind, revision=commit))
                except lib.RemoteEntryNotFoundError:
                    pass
    except Exception as error:  # of the library, of its HTTP client, of the disk
        raise Unavailable(reason(error, lib)) from None


def fetch_url(url, folder):
    """The path of a URL's file in a folder of the cache, complete or missing. Raises Unavailable.
    """
    lib = library(folder)
    from huggingface_hub import cached_assets_path
    from huggingface_hub.utils import WeakFileLock
    try:
        path = cached_assets_path("nanoInstructGPT", folder) / url.rpartition("/")[2]
        if path.exists():
            return path
        with WeakFileLock(path.with_name(f"{path.name}.lock")):  # torchrun's ranks come together
            if not path.exists():
                part = path.with_name(f"{path.name}.part")
                with open(part, "wb") as file:
                    lib.http_get(url, file)
                part.replace(path)
        return path
    except Exception as error:
        raise Unavailable(reason(error, lib)) from None


def reason(error, lib):
    """A library error in one line: its own messages have many, with the cause at the end."""
    while isinstance(error, lib.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, lib.GatedRepoError):
        return "its owner must let you in, and HF_TOKEN must say who you are"
    if isinstance(error, lib.RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, lib.RepositoryNotFoundError):
        return "there is no such repository, or HF_TOKEN must say who may read it"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}; HF_HOME names another cache"
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
