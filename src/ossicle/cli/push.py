"""ossicle push."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import EarName


@dataclass(frozen=True, kw_only=True)
class Push:
    """Upload an ear to the hub, with a model card. `ossicle.load("user/ear")` and transformers then load it."""

    ear: Positional[EarName]
    """Folder of an ear or of a run."""
    repo: Annotated[Positional[str], arg(metavar="USER/NAME")]
    """Repository on the hub, which is made if it does not exist."""
    report: Annotated[Path | None, arg(metavar="REPORT.json")] = None
    """Report of `ossicle eval`: its three numbers go into the card, and the ear's own into the
    leaderboard of a public benchmark."""
    sample: Annotated[Path | None, arg(metavar="QUESTION.wav")] = None
    """A spoken question that the ear's page offers to try; everybody can hear it."""
    license: Annotated[str | None, arg(metavar="NAME")] = None
    """License of the connector, such as apache-2.0."""
    language: tuple[str, ...] = ()
    """Languages that it hears, such as en de."""
    dataset: tuple[str, ...] = ()
    """Hub ids of the speech that it was trained on."""
    encoder: Annotated[str | None, arg(metavar="MODEL")] = None
    """Hub id of the encoder, if the ear names it by a folder on this computer."""
    llm: Annotated[str | None, arg(metavar="MODEL")] = None
    """Hub id of the LLM, the same."""
    private: bool = False
    """Make the repository private."""
    revision: Annotated[str | None, arg(metavar="BRANCH")] = None
    """Branch to write to, in place of main."""

    def run(self, command_line: str) -> int:
        """Uploads the ear and prints where it is."""
        from ossicle.evaluation.report_data import read_report
        from ossicle.hub_upload import CardMetadata, push_to_hub

        metadata = CardMetadata(
            license=self.license,
            languages=self.language,
            datasets=self.dataset,
            sample=self.sample,
            report=None if self.report is None else read_report(self.report),
        )
        address = push_to_hub(
            self.ear,
            self.repo,
            metadata=metadata,
            encoder=self.encoder,
            llm=self.llm,
            private=self.private,
            revision=self.revision,
        )
        Console().out(f"{address}\nNext: ossicle chat {self.repo} question.wav", highlight=False)
        return 0
