"""The metrics page, read by the parser of Prometheus' own client."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.no_tls import NO_TLS


class Scrape:
    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )  # fmt: skip

    def values(self, name: str, label: str) -> set[str]:
        return {sample.labels[label] for sample in self.samples if sample.name == name and label in sample.labels}

    @property
    def series(self) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {(sample.name, tuple(sorted(sample.labels.items()))) for sample in self.samples}


async def scrape(url: str) -> Scrape:
    """Over a connection of its own, so that any worker may answer."""
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS, timeout=30) as client:
        answer = await client.get(f"{url}/metrics")
    assert answer.status_code == 200, answer.text
    return Scrape(answer.text)
