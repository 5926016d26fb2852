"""The machine of the gateway: CPU, memory, disks, graphics cards. What may not be asked is absent, rather than zero."""

import logging
import os
import plistlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

logger = logging.getLogger(__name__)

POWERMETRICS = ("/usr/bin/powermetrics", "--samplers", "cpu_power,gpu_power", "-n", "1", "-i", "200", "-f", "plist")
PATIENCE = 2.0


def host_metrics(namespace: str, directory: Path) -> Iterator[Metric]:
    """`directory`: whose disk is looked at. Blocks for some milliseconds; on a Mac longer."""
    for ask in (_cpu, _load, _memory, _disks, lambda name: _free(name, directory), _nvidia, _apple):
        try:
            yield from ask(f"{namespace}_host")
        except Exception as exc:
            # Drivers and kernels fail in ways of their own, and the rest of the page is worth more.
            logger.debug("Something of this machine cannot be read: %r", exc)


def _cpu(name: str) -> Iterator[Metric]:
    seconds = CounterMetricFamily(f"{name}_cpu_seconds", "CPU time of the gateway's machine", labels=["mode"])
    for mode, value in psutil.cpu_times()._asdict().items():
        if not mode.startswith("guest"):  # which is in user and nice already
            seconds.add_metric([mode], value)
    yield seconds
    yield GaugeMetricFamily(f"{name}_cpus", "Its processors", psutil.cpu_count() or 1)


def _load(name: str) -> Iterator[Metric]:
    yield GaugeMetricFamily(f"{name}_load1", "Its load, of one minute", os.getloadavg()[0])


def _memory(name: str) -> Iterator[Metric]:
    memory = psutil.virtual_memory()
    yield GaugeMetricFamily(f"{name}_memory_total_bytes", "Its memory", memory.total)
    yield GaugeMetricFamily(f"{name}_memory_available_bytes", "What of it programs can still get", memory.available)


def _disks(name: str) -> Iterator[Metric]:
    disks = psutil.disk_io_counters()
    if disks is not None:
        yield CounterMetricFamily(f"{name}_disk_read_bytes", "Read from its disks", disks.read_bytes)
        yield CounterMetricFamily(f"{name}_disk_written_bytes", "Written to its disks", disks.write_bytes)


def _free(name: str, directory: Path) -> Iterator[Metric]:
    disk = psutil.disk_usage(str(directory))
    yield GaugeMetricFamily(f"{name}_disk_free_bytes", "Free on the disk of the spool", disk.free)


def _nvidia(name: str) -> Iterator[Metric]:
    try:
        import pynvml  # the package nvidia-ml-py, where somebody has installed it
    except ImportError:
        return
    pynvml.nvmlInit()
    busy = GaugeMetricFamily(f"{name}_gpu_utilization_ratio", "Share of time a GPU works", labels=["gpu"])
    used = GaugeMetricFamily(f"{name}_gpu_memory_used_bytes", "Memory in use of a GPU", labels=["gpu"])
    total = GaugeMetricFamily(f"{name}_gpu_memory_total_bytes", "Memory of a GPU", labels=["gpu"])
    watts = GaugeMetricFamily(f"{name}_gpu_power_watts", "What a GPU draws", labels=["gpu"])
    degrees = GaugeMetricFamily(f"{name}_gpu_temperature_celsius", "How warm a GPU is", labels=["gpu"])
    for number in range(pynvml.nvmlDeviceGetCount()):
        card = pynvml.nvmlDeviceGetHandleByIndex(number)
        reads: list[tuple[GaugeMetricFamily, Callable[[Any], float]]] = [
            (busy, lambda card: pynvml.nvmlDeviceGetUtilizationRates(card).gpu / 100),
            (used, lambda card: pynvml.nvmlDeviceGetMemoryInfo(card).used),
            (total, lambda card: pynvml.nvmlDeviceGetMemoryInfo(card).total),
            (watts, lambda card: pynvml.nvmlDeviceGetPowerUsage(card) / 1000),
            (degrees, lambda card: pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU)),
        ]
        for family, read in reads:
            try:
                family.add_metric([str(number)], read(card))
            except pynvml.NVMLError:
                continue  # cards differ in what they tell
    yield from (family for family in (busy, used, total, watts, degrees) if family.samples)


def _apple(name: str) -> Iterator[Metric]:
    if sys.platform != "darwin" or os.geteuid() != 0:
        return  # only root may ask
    done = subprocess.run(POWERMETRICS, capture_output=True, timeout=PATIENCE, check=True)  # noqa: S603 - a constant
    yield from apple_metrics(name, plistlib.loads(done.stdout.rstrip(b"\0")))


def apple_metrics(name: str, said: dict[str, Any]) -> Iterator[Metric]:
    """From one sample of powermetrics."""
    if "idle_ratio" in (gpu := said.get("gpu", {})):
        busy = GaugeMetricFamily(f"{name}_gpu_utilization_ratio", "Share of time a GPU works", labels=["gpu"])
        busy.add_metric(["0"], 1 - gpu["idle_ratio"])
        yield busy
    watts = GaugeMetricFamily(f"{name}_gpu_power_watts", "What a GPU draws", labels=["gpu"])
    processor = said.get("processor", {})
    if "gpu_power" in processor:
        watts.add_metric(["0"], processor["gpu_power"] / 1000)
        yield watts
    if "combined_power" in processor:
        yield GaugeMetricFamily(f"{name}_power_watts", "What the chip draws", processor["combined_power"] / 1000)
