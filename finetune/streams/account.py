"""The account of a batch: what became of each image that was found."""

from dataclasses import dataclass

from featurize.errors import JobError


@dataclass(frozen=True)
class Account:
    """Numbers of images, of a batch or of all batches.

    Attributes:
        found: Images that Spark found, or messages; a URL that waits is found by the batch that settles it.
        labelled: Images that have a label now.
        rejected: Images that are among the rejects now.
        gone: Images that have neither: files that were gone when their batch began, and URLs that were given up.
        labelled_before: Images that were labelled or rejected already, by an earlier batch, a batch that was killed or another
            job, or earlier in the same batch.
        waiting: URLs whose storage did not answer the last batch; none of them is among those found.
    """

    found: int = 0
    labelled: int = 0
    rejected: int = 0
    gone: int = 0
    labelled_before: int = 0
    waiting: int = 0

    def check(self, batch_id: int) -> None:
        """Checks that something became of each image of a batch.

        Raises:
            JobError: The numbers do not add up.
        """
        settled = self.labelled + self.rejected + self.gone + self.labelled_before
        if settled != self.found:
            raise JobError(
                f"batch {batch_id} does not add up: {self.found} images were found, and {settled} are accounted for: "
                f"{self.describe()}. The batch is not done: the next run of the stream finds its images again."
            )

    def plus(self, batch: "Account") -> "Account":
        """The account of one more batch and all before it."""
        return Account(
            found=self.found + batch.found,
            labelled=self.labelled + batch.labelled,
            rejected=self.rejected + batch.rejected,
            gone=self.gone + batch.gone,
            labelled_before=self.labelled_before + batch.labelled_before,
            waiting=batch.waiting,
        )

    def describe(self, *, model: str | None = None) -> str:
        """What became of the images, in words; `model` has labelled them."""
        parts = [f"{self.labelled} labelled" if model is None else f"{self.labelled} labelled by {model}"]
        parts += [f"{self.rejected} rejected", f"{self.gone} gone"]
        parts += [f"{self.labelled_before} labelled before"] if self.labelled_before else []
        parts += [f"{self.waiting} URLs are waiting"] if self.waiting else []
        return ", ".join(parts)
