"""The route of estimates: what a job or plan will cost, before it is submitted."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from api.estimate_schemas import Estimate
from api.estimates import estimated
from api.problems import documented
from api.routes.resource import Stores
from api.slow_work import SlowWork
from api.submission import read_body, submitted_either

router = APIRouter(prefix="/v1/estimate", tags=["estimate"], responses=documented(401, 403, 408, 413, 422, 429, 503))


async def _estimates(request: Request) -> SlowWork:
    work: SlowWork = request.app.state.estimates
    return work


@router.post(
    "",
    response_model=Estimate,
    summary="Estimate a job or plan",
    responses=documented(400, 415),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "anyOf": [{"$ref": "#/components/schemas/JobSpec"}, {"$ref": "#/components/schemas/PlanSpec"}]
                    }
                }
            },
        }
    },
)
async def estimate(request: Request, stores: Stores, estimates: Annotated[SlowWork, Depends(_estimates)]) -> Estimate:
    """Tokens, time and memory of a job, or of each stage of a plan; nothing is queued.

    It needs the scope submit, since documents are read as for a submission, and is refused as a submission would be.
    Weights are not read. The speed is what a worker measured last for a model of that size, or that of an earlier job;
    otherwise it is a guess, and `speed.calibrated` is false. Whatever cannot be known is null, with the reason in
    `notes`.
    """
    body = await read_body(request)
    document = await estimates.run(lambda: estimated(stores, submitted_either(body)))
    return Estimate.model_validate(document)
