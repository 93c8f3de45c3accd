"""Ray Serve's prefix-aware router, which also works while its shared tree of prefixes is lost or outdated."""

from contextlib import suppress

from ray.exceptions import RayError

# Its public name, in ray.serve.llm, cannot be imported without vLLM or SGLang.
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import PrefixCacheAffinityRouter
from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RunningReplica


class PrefixRouter(PrefixCacheAffinityRouter):
    """Sends a prompt to the replica that has seen the longest beginning of it, if loads are about equal.

    All routers share a tree of beginnings, which one actor has. The tree may know a replica before this router does, or
    after, and it is lost with its machine. Ray's class then raises, and the request would wait forever. Here the
    replica with the shorter queue of two is chosen instead.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas to try, the best first."""
        chosen: list[list[RunningReplica]]
        try:
            chosen = await super().choose_replicas(candidate_replicas, pending_request)
        except (KeyError, RayError):
            chosen = await super().choose_replicas(candidate_replicas)
        return chosen

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Route to these replicas from now on."""
        with suppress(RayError):
            super().update_replicas(replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Stop routing to this replica."""
        with suppress(RayError):
            super().on_replica_actor_died(replica_id)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Remember which replica saw the prompt."""
        with suppress(RayError):
            super().on_request_routed(pending_request, replica_id, result)
