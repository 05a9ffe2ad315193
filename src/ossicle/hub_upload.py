"""Ears to the hub: the ear's own files, with a model card that the hub's search and its readers understand."""

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    HfApi,
    ModelCardData,
    constants,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import yaml_dump
from safetensors.torch import save_file

from ossicle import checkpoint
from ossicle.audio.speech import load_speech
from ossicle.backbones.fingerprints import fingerprint_weights
from ossicle.backbones.model_files import format_one_line, is_hub_reachable
from ossicle.config import BaseSettings
from ossicle.ear import Ear, EarSettings
from ossicle.errors import CheckpointError
from ossicle.evaluation.report.write import build_model_card_table
from ossicle.evaluation.report_data import EAR, SUITE_DATA, Report
from ossicle.evaluation.suites import find_hub_dataset
from ossicle.html_page import encode_wav
from ossicle.settings_io import to_table
from ossicle.transformers_files import CONFIG_KEYS, SHIM, SHIM_TEXT

PIPELINE_TAG = "audio-text-to-text"
SAMPLE = "sample.wav"
"""The sound that the ear's page on the hub offers to try."""
RESULTS = ".eval_results/ossicle.yaml"
"""The results on a public benchmark, for its leaderboard."""
_OWN_FILES = (checkpoint.SILENCE, checkpoint.VOCABULARY, SAMPLE, RESULTS)
"""Files that an ear may lack; those of the ear that was pushed before are deleted."""
_DENIED = (401, 403)
_POCKET = "pocket/"


@dataclass(frozen=True, kw_only=True)
class CardMetadata:
    """What the maker of an ear knows about it."""

    license: str | None = None
    """Identifier such as apache-2.0."""
    languages: tuple[str, ...] = ()
    """Codes such as en."""
    datasets: tuple[str, ...] = ()
    """Hub ids of the speech that it was trained on."""
    report: Report | None = None
    """An evaluation of it."""
    sample: Path | None = None
    """A spoken question to try it with."""


def push_to_hub(
    ear: Ear | Path | str,
    repo: str,
    *,
    metadata: CardMetadata | None = None,
    encoder: str | None = None,
    llm: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Uploads an ear, in memory or in a folder, and returns the address of its commit.

    All files are one commit: an upload that is cut short leaves the repository as it was, and the same call repeats it.

    Args:
        repo: hub id, which is made if it does not exist
        encoder: hub id of the encoder, in place of a folder on this computer
        llm: hub id of the LLM, the same
        revision: branch to write to

    Raises:
        CheckpointError: not an ear, one whose backbones only this computer has, a token without rights, or no network
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "ear"
        if isinstance(ear, Ear):
            checkpoint.save(ear, folder)
        else:
            _copy_ear(ear, folder)
        _prepare(folder, metadata or CardMetadata(), encoder, llm, repo)
        return _upload(folder, repo, private=private, revision=revision, token=token)


def _copy_ear(source: Path | str, folder: Path) -> None:
    """Copies the files of an ear, and nothing else that lies beside them."""
    checkpoint.read_config(str(source))
    found = checkpoint.find_folder(str(source))
    folder.mkdir()
    try:
        for name in (checkpoint.CONFIG, checkpoint.CARD, checkpoint.SILENCE, checkpoint.VOCABULARY):
            if (found / name).is_file() or name == checkpoint.CONFIG:
                shutil.copyfile(found / name, folder / name)
    except OSError as error:
        raise CheckpointError(
            f"{source} is no finished ear ({error.strerror}): finish its training, or save it with ossicle.save"
        ) from error
    save_file(
        checkpoint.read_weights(found), folder / checkpoint.WEIGHTS
    )  # those of format 1 have other names


def _prepare(folder: Path, metadata: CardMetadata, encoder: str | None, llm: str | None, repo: str) -> None:
    """Writes into a copy of an ear what the hub needs: names of backbones, the card, the file for transformers."""
    config = checkpoint.read_config(str(folder))
    settings = checkpoint.parse_settings(config, folder)
    base = settings.base
    if encoder:
        base = replace(base, encoder=encoder, encoder_revision=None)
    if llm:
        base = replace(base, llm=llm, llm_revision=None)
    for role, name in (("encoder", base.encoder), ("llm", base.llm)):
        if not _is_public(name):
            raise CheckpointError(
                f"this ear names its {role} by {name!r}, which only this computer has: name its hub id with --{role}"
            )
    if metadata.report is not None:
        _check_is_of_ear(metadata.report, fingerprint_weights(checkpoint.read_weights(folder)))
    settings = replace(settings, base=base)
    config = {**config, **CONFIG_KEYS, **to_table(settings)}
    (folder / checkpoint.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / SHIM).write_text(SHIM_TEXT, encoding="utf-8")
    if metadata.sample is not None:
        (folder / SAMPLE).write_bytes(encode_wav(load_speech(metadata.sample)))
    if metadata.report is not None and (results := _list_leaderboard_results(metadata.report)):
        (folder / RESULTS).parent.mkdir()
        (folder / RESULTS).write_text(yaml_dump(eval_result_entries_to_yaml(results)), encoding="utf-8")
    card = folder / checkpoint.CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {repo}\n"
    text = text.replace('ossicle.load("this folder")', f'ossicle.load("{repo}")')
    if metadata.report is not None:
        text += f"\n{build_model_card_table(metadata.report)}"
    card.write_text(f"---\n{build_metadata(settings, metadata, repo)}\n---\n\n{text}", encoding="utf-8")


def _is_public(name: str) -> bool:
    return name.startswith(_POCKET) or not (
        name.startswith(("/", ".", "~")) or name.endswith(".gguf") or Path(name).exists()
    )


def build_metadata(settings: EarSettings, metadata: CardMetadata, repo: str) -> str:
    """Returns the YAML at the head of a model card."""
    bases = _list_bases(settings.base)
    others: dict[str, Any] = {"base_model_relation": "adapter"} if bases else {}
    if metadata.sample is not None:
        others["widget"] = [{"example_title": "A spoken question", "src": _build_address(repo, SAMPLE)}]
    data = ModelCardData(
        base_model=bases or None,
        datasets=list(metadata.datasets) or None,
        eval_results=_list_results(metadata.report) if metadata.report else None,
        language=list(metadata.languages) or None,
        library_name="ossicle",
        license=metadata.license,
        model_name=repo if metadata.report else None,
        pipeline_tag=PIPELINE_TAG,
        tags=["ossicle", "speech", settings.connector.form],
        **others,
    )
    return data.to_yaml()


def _list_bases(base: BaseSettings) -> list[str]:
    return [name for name in (base.llm, base.encoder) if not name.startswith(_POCKET)]


def _list_results(report: Report) -> list[EvalResult]:
    """Returns the three numbers in the form of the hub's model-index."""
    table = report.overall
    numbers = {"text ceiling": table.text_ceiling, "cascade": table.cascade, "ear": table.ear}
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            dataset_type=report.suite,
            dataset_name=report.suite,
            metric_type=table.metric.name,
            metric_value=round(estimate.value, 4),
            metric_name=f"{name}, n = {table.n}",
        )
        for name, estimate in numbers.items()
    ]


def _check_is_of_ear(report: Report, fingerprint: str) -> None:
    """Refuses a report on another ear, where it says which one it is on.

    Raises:
        CheckpointError: it is on another one
    """
    described = report.about.get(EAR)
    if described is not None and f"({fingerprint})" not in described:
        raise CheckpointError(
            f"the report is on {described}, but the ear to push is ({fingerprint}): evaluate the one that you push"
        )


def _list_leaderboard_results(report: Report) -> list[EvalResultEntry]:
    """Returns the ear's number for the leaderboard of a public benchmark; none for other suites and other data."""
    dataset, table = find_hub_dataset(report.suite), report.overall
    if dataset is None or report.about.get(SUITE_DATA) is not None:
        return []
    others = f"text ceiling {table.text_ceiling.value:.4f}, cascade {table.cascade.value:.4f}, n = {table.n}"
    return [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=report.suite.partition("/")[2] or "default",
            value=round(table.ear.value, 4),
            notes=f"{table.metric.name}; {others}",
        )
    ]


def _build_address(repo: str, name: str) -> str:
    return f"{constants.ENDPOINT}/{repo}/resolve/main/{name}"


def _upload(folder: Path, repo: str, *, private: bool, revision: str | None, token: str | None) -> str:
    if not is_hub_reachable():
        raise CheckpointError(f"{constants.ENDPOINT} cannot be reached: connect, and push again")
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message="Upload an ear with ossicle",
            delete_patterns=list(_OWN_FILES),
        )
    except (HfHubHTTPError, HFValidationError, ValueError, OSError) as error:
        raise CheckpointError(_describe_refusal(error, repo)) from error
    return commit.commit_url


def _describe_refusal(error: Exception, repo: str) -> str:
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    if status in _DENIED or isinstance(error, RepositoryNotFoundError):
        return (
            f"{constants.ENDPOINT} does not let this token write to {repo}: log in with `hf auth login` and a token with"
            " the role write, and check the name"
        )
    return f"{repo} cannot be written: {format_one_line(error)}"
