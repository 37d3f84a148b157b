# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part that all action plugins of this collection share.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import gc
import itertools
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import UnsupportedError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.bastion.mux.plugins.module_utils.engine.module import attempt
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context
from ansible_collections.bastion.mux.plugins.module_utils.engine.spec import EXTRA_ARGUMENTS
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.plugin_utils.inventory import (
    ARGUMENTS,
    FROM_INVENTORY,
    HOST,
)

display = Display()

#: The strategy loads this file before it forks the workers, so that all of one run share the key;
#: each worker does one task of one host, and counts its loop items and retries from 0.
_RUN_KEY = os.urandom(32)
_ROUNDS = itertools.count()

_LOCAL = ("local", "ansible.builtin.local")


def _in_words(error: Exception) -> str:
    # The validator leaves the beginning of this sentence to its caller, as AnsibleModule's.
    start = "Unsupported parameters: " if isinstance(error, UnsupportedError) else ""
    return f"{start}{error}"


class MuxAction(ActionBase):
    """Runs the engine in the controller's worker process, or the module where it is delegated to.

    In the worker there is no module to transfer and no new Python: a task that finds nothing to
    change costs little more than the fork that every task costs.
    """

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True

    #: The engine's function and its argument spec; a subclass is nothing but these.
    engine_run: ClassVar[Callable[..., dict[str, Any]]]
    argument_spec: ClassVar[dict[str, dict[str, Any]]]
    _validator: ClassVar[ArgumentSpecValidator]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Once, before the workers are forked.
        cls._validator = ArgumentSpecValidator(cls.argument_spec)

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        host = self._task.args.get("host") or task_vars.get("inventory_hostname")

        def log(line: str) -> None:
            display.vvv(line, host=host)

        # Its path would not do: a file of tasks that is included again is tried again.
        task = self._task._uuid  # noqa: SLF001
        context = Context(
            check_mode=self._task.check_mode,
            log=log,
            run_key=_RUN_KEY,
            round=f"{task} {next(_ROUNDS)}",
        )
        # A thousand forwardings are enough for a full collection, which would go through all that
        # the worker inherited from the controller: as long as it takes to open them.
        gc.freeze()
        try:
            result.update(attempt(self._run_engine, task_vars, context))
        finally:
            gc.unfreeze()
        return result

    def _run_engine(self, task_vars: Mapping[str, Any], context: Context) -> dict[str, Any]:
        if self._as_module():
            self._validated(self._task.args)
            result: dict[str, Any] = self._execute_module(task_vars=task_vars)
            return result
        return type(self).engine_run(self._params(task_vars), context)

    def _is_local(self) -> bool:
        return self._play_context.connection in _LOCAL

    def _as_module(self) -> bool:
        become = bool(self._play_context.become)
        return bool(self._task.delegate_to) or (self._is_local() and become)

    def _params(self, task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the task, completed from the inventory host and validated.

        :raises MuxError: ``invalid``.
        """
        arguments = dict(self._task.args)
        extra = self.complete(arguments, task_vars)
        return {**self._validated(arguments), EXTRA_ARGUMENTS: extra}

    def _validated(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        checked = self._validator.validate(dict(arguments))
        if checked.error_messages:
            raise MuxError("invalid", "; ".join(_in_words(error) for error in checked.errors))
        return dict(checked.validated_parameters)

    def complete(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> list[str]:
        """Fill in what the task leaves out, where it names no host itself.

        :returns: further arguments for ssh.
        """
        if arguments.get("host") is not None or arguments.get("control_dir") is not None:
            return []
        if arguments.get("control_path") is not None and self._is_local():
            # A play on the controller: its host is no bastion, the path alone names the master.
            return []
        arguments["host"] = self._variable(task_vars, HOST)
        for name, variables in FROM_INVENTORY.items():
            if name in self.argument_spec and arguments.get(name) is None:
                value = self._variable(task_vars, variables)
                if value is not None:
                    arguments[name] = value
        extra = []
        for variable in ARGUMENTS:
            try:
                extra += shlex.split(str(self._variable(task_vars, (variable,)) or ""))
            except ValueError as error:
                raise MuxError("invalid", "%s: %s" % (variable, error)) from None
        return extra

    def _variable(self, task_vars: Mapping[str, Any], names: tuple[str, ...]) -> Any:
        for name in names:
            if name in task_vars:
                value = self._templar.template(task_vars[name])
                if value not in (None, ""):
                    return value
        return None
