"""The registry: all patches, their states, and the calls that turn them on and off."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.metadata
import logging
from collections.abc import Iterator

from . import versions
from .entry import Decision, Entry, Problem, bring
from .environment import Environment, UnknownPatchError, canonical
from .imports import retry
from .installation import Installation
from .patch import Patch
from .plugins import loaded
from .statuses import Statuses, status_of
from .wrapping import LOCK

logger = logging.getLogger("qlora_bf16_patch")


class Registry:
    """All known patches. Thread-safe; every call is idempotent.

    Decisions and what follows from them change under one lock. Whatever runs code of others (a factory, a library's
    import, a log handler, a warning filter) runs outside of it.

    Args:
        environment: what the variables say.

    Examples:
        >>> from qlora_bf16_patch.engine.environment import Environment
        >>> from qlora_bf16_patch.engine.registry import Registry
        >>> Registry(Environment({}, known=())).status()
        []
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._entries: dict[str, Entry] = {}
        self._strict_blocks = 0
        self._lenient: list[Installation] = []  # those that the open blocks of `strict` have made strict

    def register(self, patch: Patch) -> None:
        """Add a patch. It is installed when its library arrives, or at once if that is imported already.

        Args:
            patch: one of your own.

        Raises:
            ValueError: another patch has this name, or the name is not canonical.

        Examples:
            >>> where = "transformers.models.llama.modeling_llama", "LlamaRMSNorm.forward"
            >>> qlora_bf16_patch.register(qlora_bf16_patch.Patch("llama.norms", *where, load=lambda: keeps_dtype))
            >>> qlora_bf16_patch.status()[-1].state, norm(hidden_states).dtype
            ('active', torch.bfloat16)
        """
        if patch.name != canonical(patch.name):
            raise ValueError(
                f"a patch's name is lower case, without '-': {canonical(patch.name)!r}, not {patch.name!r}"
            )
        bring([self._add(patch)])

    def register_entry_point(self, point: importlib.metadata.EntryPoint) -> None:
        """Add the patch that a third party's entry point names; one that cannot be loaded is told in the status."""
        patch, problem = loaded(point)
        try:
            bring([self._add(patch, problem)])
        except Exception as error:  # another patch has the name, say
            logger.warning("the entry point %s is left out: %s", point.name, error)

    def enable(self, *names: str, force: bool = False) -> None:
        """Turn patches on, and patch anew what somebody has replaced since.

        Args:
            names: names or globs; none means those that are on by default or by the environment.
            force: also where the environment decided otherwise.

        Raises:
            UnknownPatchError: a name matches no patch; nothing is changed.

        Examples:
            >>> qlora_bf16_patch.enable("transformers.generate")
            >>> [row.state for row in qlora_bf16_patch.status() if row.name == "transformers.generate"]
            ['active']
        """
        self._switch(names, True, force)

    def disable(self, *names: str, force: bool = False) -> None:
        """Turn patches off, for the whole process, compiled code included.

        Args:
            names: names or globs; none means all.
            force: also where the environment decided otherwise.

        Raises:
            UnknownPatchError: a name matches no patch; nothing is changed.

        Examples:
            >>> qlora_bf16_patch.disable("peft.lora.*")
            >>> [row.reason for row in qlora_bf16_patch.status() if row.name == "peft.lora.linear4bit"]
            ['switched off by call']
        """
        self._switch(names, False, force)

    @contextlib.contextmanager
    def enabled(self, *names: str, force: bool = False) -> Iterator[None]:
        """Patches on inside the block, for the whole process; as before after it. Blocks may overlap.

        Args:
            names: as of ``enable``.
            force: also where the environment decided otherwise.

        Returns:
            A context manager; it gives nothing.

        Raises:
            UnknownPatchError: a name matches no patch; nothing is changed.

        Examples:
            >>> with qlora_bf16_patch.enabled("transformers.generate"), qlora_bf16_patch.trace(model) as trace:
            ...     tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)
            >>> tokens.shape, trace.mismatches()
            (torch.Size([1, 6]), [])
        """
        with self._block(names, True, force):
            yield

    @contextlib.contextmanager
    def disabled(self, *names: str, force: bool = False) -> Iterator[None]:
        """Patches off inside the block, for the whole process; as before after it. Blocks may overlap.

        Args:
            names: as of ``disable``.
            force: also where the environment decided otherwise.

        Returns:
            A context manager; it gives nothing.

        Raises:
            UnknownPatchError: a name matches no patch; nothing is changed.
            RuntimeError: torch's own, in the block.

        Examples:
            >>> with qlora_bf16_patch.disabled():
            ...     model(**inputs)
            Traceback (most recent call last):
                ...
            RuntimeError: expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16
        """
        with self._block(names, False, force):
            yield

    @contextlib.contextmanager
    def strict(self) -> Iterator[None]:
        """Patches raise inside the block where they would have cast what torch refuses, for the whole process.

        The error names the module's path, the operation, its dtypes and what to do. Blocks may overlap.

        Returns:
            A context manager; it gives nothing.

        Raises:
            CastRefused: a ``TypeError``, in the block, at an operation whose operand a patch would have cast.

        Examples:
            >>> with qlora_bf16_patch.strict():
            ...     model(**inputs)
            Traceback (most recent call last):
                ...
            qlora_bf16_patch.watching.events.CastRefused: lm_head (Linear): linear computes in torch.bfloat16 and was
            given torch.float32 as its input. peft.boundary would have cast it, but strict mode is on
            (QLORA_BF16_PATCH_STRICT, or qlora_bf16_patch.strict()): cast it where it is made, or switch that off.
        """
        with LOCK:
            self._strict_blocks += 1
            for entry in self._entries.values():
                self._make_strict(entry.installation)
        try:
            yield
        finally:
            with LOCK:
                self._strict_blocks -= 1
                while self._lenient and not self._strict_blocks:
                    self._lenient.pop().strict = False

    def reset(self) -> None:
        """Forget all calls, those of open blocks as well: what the environment and the defaults say counts again.

        Examples:
            >>> qlora_bf16_patch.disable()
            >>> qlora_bf16_patch.reset()
            >>> {row.decided_by for row in qlora_bf16_patch.status()}
            {'default'}
        """
        with LOCK:
            entries = list(self._entries.values())
            for entry in entries:
                entry.layers = dict.fromkeys(entry.layers, entry.first)
        bring(entries)

    def uninstall(self) -> None:
        """Turn everything off and put back the very objects that were there before; ``enable`` brings patches back.

        Examples:
            >>> from peft.tuners.lora.bnb import Linear4bit
            >>> original = Linear4bit.forward.__wrapped__
            >>> qlora_bf16_patch.uninstall()
            >>> Linear4bit.forward is original
            True
        """
        with LOCK:
            entries = list(self._entries.values())
            for entry in entries:  # also the decisions of open blocks
                entry.layers = dict.fromkeys(entry.layers, Decision(False, "call (uninstall)", taken_out=True))
        bring(entries)

    def status(self) -> Statuses:
        """Every patch with its state, reason and who decided.

        Returns:
            A list of ``Status``, in the order in which patches were registered; it prints as a table.

        Examples:
            >>> for row in qlora_bf16_patch.status()[:3]:
            ...     print(row.name, row.state)
            bitsandbytes.linear4bit active
            bitsandbytes.linear8bit active
            peft.lora.linear4bit active
        """
        retry()
        with LOCK:
            rows = [(entry, *entry.state(), entry.decision.by) for entry in self._entries.values()]
        found = {name: versions.installed(name) for name in {entry.patch.distribution for entry, *_ in rows}}
        return Statuses(
            status_of(entry.patch, state, reason, by, found[entry.patch.distribution], entry.installation.told())
            for entry, state, reason, by in rows
        )

    def patches(self) -> list[Patch]:
        """Every patch, in the order in which they were registered."""
        with LOCK:
            return [entry.patch for entry in self._entries.values()]

    def installation(self, name: str) -> Installation:
        """What the patch ``name`` has put in place."""
        return self._entries[name].installation

    def _add(self, patch: Patch, problem: Problem | None = None) -> Entry:
        with LOCK:
            if patch.name in self._entries:
                raise ValueError(f"a patch named {patch.name!r} is registered already")
            first = Decision(*self._environment.decide(patch.name, patch.default))
            installation = Installation(patch.name, self._environment.strict)
            if self._strict_blocks:
                self._make_strict(installation)
            return self._entries.setdefault(patch.name, Entry(patch, first, installation, problem))

    def _make_strict(self, installation: Installation) -> None:
        if not installation.strict:
            installation.strict = True
            self._lenient.append(installation)

    def _switch(self, patterns: tuple[str, ...], on: bool, force: bool, block: object = None) -> None:
        """Decide, and do what follows. The decisions of a block are a layer of their own in each entry."""
        with LOCK:
            entries = self._matching(patterns, on)
            for entry in entries if block else ():
                entry.layers[block] = entry.decision
            refused = [message for entry in entries if (message := _decide(entry, on, force))]
        bring(entries)
        for message in refused:
            logger.warning("%s", message)

    @contextlib.contextmanager
    def _block(self, patterns: tuple[str, ...], on: bool, force: bool) -> Iterator[None]:
        block = object()
        try:
            self._switch(patterns, on, force, block)
            yield
        finally:
            with LOCK:  # other blocks may have come over this one, and stay
                entries = [entry for entry in self._entries.values() if entry.layers.pop(block, None)]
            bring(entries)

    def _matching(self, patterns: tuple[str, ...], on: bool) -> list[Entry]:
        """The patches that names or globs mean. Without names: all, or those that are on by default.

        Raises:
            UnknownPatchError: one matches no patch.
        """
        if not patterns:
            return [entry for entry in self._entries.values() if not on or entry.patch.default or entry.first.on]
        for pattern in patterns:
            problem = self._environment.problem(pattern, self._entries)
            if problem:
                raise UnknownPatchError(problem)
        wanted = [canonical(pattern) for pattern in patterns]
        return [entry for name, entry in self._entries.items() if any(fnmatch.fnmatchcase(name, one) for one in wanted)]


def _decide(entry: Entry, on: bool, force: bool) -> str | None:
    """Record a call's decision. The environment takes precedence; the message says so."""
    if not entry.first.by.startswith("environment") or force:
        entry.decision = Decision(on, "call (forced)" if force else "call")
        return None
    entry.decision = entry.first  # also after an uninstall
    state = "on" if entry.first.on else "off"
    return None if entry.first.on == on else f"{entry.patch.name} stays {state}, by {entry.first.by}"
