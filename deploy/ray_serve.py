"""The server as replicas under Ray Serve, on one machine or many.

    python -m deploy.ray_serve --max-replicas 8

    client ──► Ray's proxy ──► Ingress ──► the Replica that the router chooses: the application and its engine

It starts Ray here, or joins the cluster that RAY_ADDRESS names. Settings are those of `thoughtbubbles serve`, and so is
what SIGTERM does. A Serve config file imports `deploy.ray_serve:app`, which has its settings from the environment.
"""

import argparse
import os
import signal
import threading
from typing import Any, Self

import ray
from pydantic import BaseModel, Field, ValidationError, model_validator
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions, RequestRouterConfig
from ray.serve.deployment import Application
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from deploy.replicas.ingress import Ingress
from deploy.replicas.prefix_router import PrefixRouter
from deploy.replicas.replica import Replica
from deploy.replicas.scaling import replicas_wanted
from thoughtbubbles.server.http.middleware import BodyLimit
from thoughtbubbles.server.settings import ServerSettings
from thoughtbubbles.server.sources import add_arguments, read_settings

NAME = "thoughtbubbles"
FAREWELL_SECONDS = 5.0
"""Time that an ingress has to end its clients' answers after a replica has been stopped."""
ALIKE = 8
"""Loads of two replicas count as equal if they differ by at most `max_batch_size` over this."""

QUIET = LoggingConfig(enable_access_log=False)
"""The application writes a line for each request; Serve would write two more."""


class Fleet(BaseModel, frozen=True, extra="forbid"):
    """Numbers of replicas and ingresses, and how quickly they change."""

    min_replicas: int = Field(1, ge=0, description="fewest replicas")
    max_replicas: int = Field(1, ge=1, description="most replicas")
    upscale_delay_s: float = Field(10.0, ge=0, description="seconds of higher load before replicas are added")
    downscale_delay_s: float = Field(300.0, ge=0, description="seconds of lower load before replicas are removed")
    max_queued_requests: int = Field(1000, ge=1, description="most requests that wait in one ingress; more are refused")
    ingresses: int = Field(1, ge=1, description="processes that pass requests to the replicas")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas must be at least min_replicas ({self.min_replicas})")
        return self


def app(fleet: Fleet) -> Application:
    """Return the application that a Serve config file imports; its `args` are the fleet.

    Raises `ValueError` naming a wrong setting.
    """
    return application(fleet, read_settings(argparse.Namespace(config=None), os.environ))


def application(fleet: Fleet, settings: ServerSettings) -> Application:
    """Return an ingress that passes requests to replicas."""

    def asgi() -> ASGIApp:
        ingress = Ingress(serve.get_deployment_handle(Replica.__name__), settings.request_timeout_seconds)
        limited = BodyLimit(ingress, settings.max_body_bytes, settings.body_timeout_seconds)
        return Starlette(routes=[Mount("/", limited)])

    replicas = serve.deployment(Replica).options(**_replicas(fleet, settings)).bind(settings)
    return serve.deployment(serve.ingress(asgi)()).options(**_ingresses(fleet, settings)).bind(replicas)


def _replicas(fleet: Fleet, settings: ServerSettings) -> dict[str, Any]:
    """Return the options with which Serve runs replicas.

    Each gets requests for two batches: one to compute, and the next one. Other requests wait at the router, where a
    replica that is added can take them.
    """
    batch = settings.max_batch_size
    return {
        "max_ongoing_requests": 2 * batch,
        "max_queued_requests": fleet.max_queued_requests,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=fleet.min_replicas,
            max_replicas=fleet.max_replicas,
            target_ongoing_requests=batch,
            upscale_delay_s=fleet.upscale_delay_s,
            downscale_delay_s=fleet.downscale_delay_s,
            policy=AutoscalingPolicy(policy_function=replicas_wanted),
        ),
        "request_router_config": RequestRouterConfig(
            request_router_class=PrefixRouter,
            request_router_kwargs={"imbalanced_threshold": batch // ALIKE, "do_eviction": True},
        ),
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "ray_actor_options": {"num_cpus": settings.threads or 1, "num_gpus": int(settings.device.startswith("cuda"))},
        "logging_config": QUIET,
    }


def _ingresses(fleet: Fleet, settings: ServerSettings) -> dict[str, Any]:
    return {
        "name": Ingress.__name__,
        "num_replicas": fleet.ingresses,
        "max_ongoing_requests": 1 << 16,  # the replicas' limit is the one that counts
        "graceful_shutdown_timeout_s": settings.drain_seconds + FAREWELL_SECONDS,
        "ray_actor_options": {"num_cpus": 0},
        "logging_config": QUIET,
    }


def main() -> None:
    """Serve until a signal, then let running requests finish: Ray's own shutdown disconnects every client."""
    fleet, settings = _arguments()
    ray.init(namespace="serve")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    serve.start(http_options=HTTPOptions(host=settings.host, port=settings.port))
    serve.run(application(fleet, settings), name=NAME)
    print(f"Listening on http://{settings.host}:{settings.port}", flush=True)
    stopping.wait()
    serve.delete(NAME)
    serve.shutdown()


def _arguments() -> tuple[Fleet, ServerSettings]:
    """Return the fleet and the settings of the command line. End the process with a message for a wrong one."""
    parser = argparse.ArgumentParser(prog="python -m deploy.ray_serve", description=__doc__)
    add_arguments(parser)
    for name, field in Fleet.model_fields.items():
        text = f"{field.description} ({field.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(field.default), default=field.default, help=text)
    arguments = parser.parse_args()
    try:
        fleet = Fleet(**{name: getattr(arguments, name) for name in Fleet.model_fields})
        return fleet, read_settings(arguments, os.environ)
    except ValidationError as error:
        parser.error("; ".join(f"{' '.join(map(str, each['loc']))} {each['msg']}" for each in error.errors()))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
