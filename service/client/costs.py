"""`client.costs` and `client.budgets`: device time and money."""

from __future__ import annotations

from typing import Any, Final, Unpack

from service.client.access import UsageQuery, parameters
from service.client.connection import LONG, Resource, given, path_of
from service.client.types.costs import Budget, CostPage, DeletedBudget, YearAnswer

COST_PAGE: Final = 1000


class Costs(Resource):
    """`client.costs`: what requests, runs and a year cost."""

    def retrieve(self, **query: Unpack[UsageQuery]) -> CostPage:
        """All rows of a period, with the engine's time, prices and budgets; by default of the last 24 hours by adapter.

        A key with the scope `admin` sees all projects, any other key itself. Raises ClientError.
        """
        params = {**given(parameters(query)), "limit": COST_PAGE}
        page = self._page(params)
        last = page
        while last["has_more"] and last["data"]:
            params |= {"start": page["start"], "end": page["end"], "after": last["data"][-1]["id"]}
            last = self._page(params)
            page["data"] += last["data"]
        page["has_more"] = False
        return page

    def _page(self, params: dict[str, Any]) -> CostPage:
        return self._connection.request(CostPage, "GET", path_of("costs"), params=params, timeout=LONG)

    def year(
        self, adapter: str, *, requests_per_day: float | None = None, prompt_tokens: int | None = None
    ) -> YearAnswer:
        """What each version of an adapter costs in a year.

        Args:
            adapter: Its name.
            requests_per_day: None: the traffic of the last 30 days, scaled.
            prompt_tokens: Tokens that a long prompt would add to each request. None: what was measured.

        Raises:
            ClientError: `model_not_found` (404).
        """
        params = given({"adapter": adapter, "requests_per_day": requests_per_day, "prompt_tokens": prompt_tokens})
        return self._connection.request(YearAnswer, "GET", path_of("costs", "year"), params=params, timeout=LONG)


class Budgets(Resource):
    """`client.budgets`: what projects may spend in a calendar month. Only `list` is for keys without `admin`."""

    def list(self) -> list[Budget]:
        """The budgets that the key may see, with what is left of them. Raises ClientError."""
        answer = self._connection.request(dict[str, Any], "GET", path_of("budgets"), timeout=LONG)
        budgets: list[Budget] = answer["data"]
        return budgets

    def set(self, project: str, monthly: float) -> Budget:
        """Set a project's budget. What was spent this month counts.

        Raises:
            ClientError: `project_not_found` (404), or `no_device_price` (409).
        """
        return self._connection.request(
            Budget, "PUT", path_of("budgets", project), json={"monthly": monthly}, timeout=LONG
        )

    def delete(self, project: str) -> DeletedBudget:
        """Remove a project's budget. Raises ClientError `not_found` (404) if it has none."""
        return self._connection.request(DeletedBudget, "DELETE", path_of("budgets", project))
