"""Examples of requests and answers, one for each operation, which the description shows."""

from collections.abc import Mapping
from typing import Any

from api.schemas import EXAMPLE_ID, EXAMPLE_PLAN_ID

OTHER_ID = f"{EXAMPLE_ID[:-1]}6"
SUBMITTED, STARTED, ENDED = "2026-01-31T12:00:00Z", "2026-01-31T12:00:01.250000Z", "2026-01-31T12:41:07.500000Z"
SPEC = {
    "name": "llama-8x",
    "model": {"id": "models/llama", "dtype": "auto"},
    "data": {"files": ["books/*.txt"], "search_documents": 8, "validation_documents": 4, "held_out_documents": 8},
    "target_length": 32768,
    "space": {"initial_tokens": [0]},
    "budget": {"candidates": 200},
}
PLAN_SPEC = {
    "name": "llama-64x",
    "model": {"id": "models/llama"},
    "data": {"files": ["books/*.txt"]},
    "target_length": 262144,
    "recipe": "longrope",
}
PROGRESS = {
    "phase": "searching",
    "generation": 5,
    "candidates": 96,
    "candidates_budget": 200,
    "evaluations": 130,
    "tokens": 25165056,
    "seconds": 1184.2,
    "best_perplexity": 6.1043,
    "closed_form": "yarn",
    "closed_form_perplexity": 6.3318,
    "share": 0.48,
    "workers": 4,
    "scored": None,
    "to_score": None,
    "step": None,
    "steps": None,
    "loss": None,
}
_JOB_PATH, _PLAN_PATH = f"/v1/jobs/{EXAMPLE_ID}", f"/v1/plans/{EXAMPLE_PLAN_ID}"
JOB_OUTLINE = {
    "id": EXAMPLE_ID,
    "name": "llama-8x",
    "kind": "search",
    "plan": None,
    "stage": None,
    "state": "running",
    "request": None,
    "note": None,
    "submitted_at": SUBMITTED,
    "started_at": STARTED,
    "ended_at": None,
    "submitted_by": "anna",
    "kept": None,
    "coordinator": "host-4711",
    "progress": PROGRESS,
    "events": 41,
    "error": None,
    "links": {
        "self": _JOB_PATH,
        "events": f"{_JOB_PATH}/events",
        "evaluations": f"{_JOB_PATH}/evaluations",
        "factors": f"{_JOB_PATH}/factors",
        "report": f"{_JOB_PATH}/report",
        "dashboard": "/dashboard",
    },
}
JOB = JOB_OUTLINE | {"spec": SPEC}
PLAN_OUTLINE = {
    "id": EXAMPLE_PLAN_ID,
    "name": "llama-64x",
    "state": "waiting",
    "request": None,
    "note": None,
    "submitted_at": SUBMITTED,
    "ended_at": None,
    "submitted_by": "anna",
    "kept": None,
    "stage": "tuned-elsewhere",
    "stages": [
        {"name": "search-1", "kind": "search", "state": "finished", "job": EXAMPLE_ID, "reused": False, "model": None},
        {
            "name": "tuned-elsewhere",
            "kind": "await_checkpoint",
            "state": "waiting",
            "job": None,
            "reused": False,
            "model": None,
        },
    ],
    "progress": None,
    "events": 7,
    "error": None,
    "links": {
        "self": _PLAN_PATH,
        "events": f"{_PLAN_PATH}/events",
        "factors": f"{_PLAN_PATH}/factors",
        "report": f"{_PLAN_PATH}/report",
    },
}
PLAN = PLAN_OUTLINE | {"spec": PLAN_SPEC}
FACTORS = {
    "schema": "factor-search/factors@1",
    "model": {
        "id": "models/llama",
        "revision": None,
        "architecture": "LlamaForCausalLM",
        "rope_theta": 10000.0,
        "rotary_dim": 4,
        "original_length": 4096,
        "base_rope_type": "default",
    },
    "target_length": 32768,
    "scale": 8.0,
    "rescale_factors": [1.0, 7.94],
    "initial_tokens": 0,
    "attention_factor": 1.118033988749895,
    "perplexity": {
        "search": 6.0871,
        "validation": 6.2104,
        "held_out": 6.0533,
        "held_out_baselines": {"yarn": 6.2911, "none": 412.7},
    },
    "provenance": {
        "job": "llama-8x",
        "strategy": "auto",
        "seed": 0,
        "candidates": 200,
        "tokens_evaluated": 52428000,
        "data_sha256": "8d" * 32,
        "versions": {"factor-search": "0.2.0", "torch": "2.11.0"},
    },
    "sha256": "2b" * 32,
}
_FOUND_ROW = {"name": "found", "is": "found 187", "validation": 6.2104, "held_out": 6.0533, "standard_error": 0.21}
_YARN_ROW = {"name": "yarn", "is": "yarn", "validation": 6.4402, "held_out": 6.2911, "standard_error": 0.22}
REPORT = {
    "schema": "factor-search/report@1",
    "name": "llama-8x",
    "status": "finished",
    "spec": SPEC,
    "model": FACTORS["model"],
    "documents": {"search": ["books/a.txt"], "validation": ["books/b.txt"], "held_out": ["books/c.txt"]},
    "search": {"ended_by": "candidates", "candidates": 200, "evaluations": 264, "tokens": 52428000, "seconds": 2461.0},
    "factors": {"rescale_factors": [1.0, 7.94], "initial_tokens": 0, "attention_factor": 1.118033988749895},
    "winner": "found 187",
    "results": [_FOUND_ROW, _YARN_ROW],
    "comparison": {
        "best_closed_form": "yarn",
        "difference": 0.0385,
        "standard_error": 0.0041,
        "standard_errors": 9.4,
    },
    "closed_forms": {"yarn": {"rescale_factors": [1.0, 8.0], "initial_tokens": 0, "attention_factor": 1.2079}},
    "versions": {"factor-search": "0.2.0", "torch": "2.11.0"},
}
PLAN_REPORT = {
    "schema": "factor-search/plan-report@1",
    "name": "llama-64x",
    "status": "unfinished",
    "stages": [
        {
            "name": "search-1",
            "kind": "search",
            "status": "finished",
            "summary": "6.0533 at 32,768 tokens, 0.0385 ± 0.0041 nats per token better than yarn",
        }
    ],
}
EVALUATION = {
    "number": 187,
    "generation": 9,
    "part": "search",
    "state": "done",
    "outcome": "ok",
    "documents": 2,
    "perplexity": 6.0871,
    "loss": 1.8061,
    "losses": [1.7911, 1.8211],
    "tokens": [32767, 32767],
    "losses_at": {"4096": [2.0114, 2.0402], "32768": [1.7911, 1.8211]},
    "rescale_factors": [1.0, 7.94],
    "initial_tokens": 0,
    "attention_factor": 1.118033988749895,
    "key": "5f" * 32,
    "seconds": 9.4,
    "worker": "host:4712",
    "attempts": 1,
    "reused": False,
    "error": None,
}
COURSE = {
    "about": {
        "target_length": 32768,
        "original_length": 4096,
        "scale": 8.0,
        "critical_pair": 1.0,
        "wavelengths": [6.28, 628.3],
        "closed_forms": [
            {
                "name": "yarn",
                "number": 0,
                "rescale_factors": [1.0, 8.0],
                "initial_tokens": 0,
                "attention_factor": 1.2079,
            }
        ],
        "documents": {"search": 8, "validation": 4, "held_out": 8},
        "study": "/dashboard/studies/3",
    },
    "number": [0, 1],
    "generation": [0, 0],
    "candidate": ["3f9a01c27be4", "b11c9d20aa57"],
    "documents": [8, 2],
    "tokens": [262136, 65534],
    "perplexity": [6.3318, 7.9021],
    "outcome": ["ok", "pruned"],
    "next": None,
    "settled": 1,
    "outcomes": {"ok": 1, "pruned": 1},
    "workers": [{"name": "host:4712", "evaluations": 2, "seconds": 11.8, "last_at": "2026-01-31T12:00:14Z"}],
}
DOWNLOADS = {
    "formats": [
        {
            "format": "vllm",
            "title": "vLLM",
            "writes": "the JSON of --hf-overrides, and prints the command",
            "document": "vllm.json",
            "export": "factor-search export --factors factors.json --format vllm --out vllm.json",
            "load": 'vllm serve models/llama --hf-overrides "$(cat vllm.json)" --max-model-len 32768',
        }
    ]
}
_COMPARED = {
    "name": "llama-8x",
    "state": "finished",
    "model": "models/llama",
    "target_length": 32768,
    "objective": "perplexity",
    "strategy": "auto",
    "candidates": 200,
    "tokens": 52428000,
    "seconds": 2461.0,
    "best_perplexity": 6.0871,
    "held_out": 6.0533,
    "standard_error": 0.21,
    "winner": "found 187",
}
COMPARISON = {
    "jobs": [{"id": EXAMPLE_ID} | _COMPARED, {"id": OTHER_ID} | _COMPARED | {"strategy": "cma", "held_out": 6.0688}],
    "pairs": [
        {
            "first": EXAMPLE_ID,
            "second": OTHER_ID,
            "documents": ["books/c.txt", "books/d.txt"],
            "difference": 0.0026,
            "standard_error": 0.0011,
            "verified": True,
            "note": None,
        }
    ],
}
_DOCUMENT = {"file": "books/c.txt", "tokens": 32768}
ESTIMATE = {
    "documents": {"search": [_DOCUMENT], "validation": [_DOCUMENT], "held_out": [_DOCUMENT]},
    "evaluation": {"tokens": 262144, "operations": 3.6e15, "seconds": 74.0},
    "memory": {"weights": 13476831232, "activations": 2147483648, "peak": 15891169280, "available": 85899345920},
    "search": {"candidates": 200, "full_evaluations": 64.0, "tokens": 16777216, "seconds": 4736.0},
    "total": {"tokens": 22020096, "seconds": 6216.0},
    "speed": {"device": "cuda", "tokens_per_second": 3542.0, "calibrated": True, "source": "measured"},
    "fits": True,
    "largest_length": None,
    "too_large": None,
    "notes": [],
}
_STORED = {
    "kind": "job",
    "id": EXAMPLE_ID,
    "name": "llama-8x",
    "state": "finished",
    "submitted_at": SUBMITTED,
    "ended_at": ENDED,
    "kept": "for the paper",
    "database_bytes": 1482752,
    "folder_bytes": 0,
}
STORAGE = {
    "database_bytes": 20971520,
    "free_bytes": 0,
    "evaluations": 264,
    "folder_bytes": 0,
    "unused_folders": [{"name": "finetune-8d8d8d8d8d8d8d8d8d8d8d8d", "bytes": 13631488}],
    "items": [_STORED],
    "next": None,
}
PRUNED = {"items": [_STORED | {"kept": None}], "folders": [], "folder_bytes": 0, "dry_run": True, "more": False}
ERROR = {
    "type": "about:blank",
    "title": "Unprocessable Content",
    "status": 422,
    "detail": "the specification is not valid: target_length: Input should be greater than 0",
    "instance": "/v1/jobs",
    "errors": [{"pointer": "#/target_length", "detail": "Input should be greater than 0"}],
}

REQUESTS: Mapping[tuple[str, str], Any] = {
    ("post", "/v1/jobs"): SPEC,
    ("post", "/v1/plans"): PLAN_SPEC,
    ("post", "/v1/jobs/{job_id}/keep"): {"name": "for the paper"},
    ("post", "/v1/plans/{plan_id}/keep"): {"name": None},
    ("post", "/v1/plans/{plan_id}/retry"): {"stage": "search-1"},
    ("post", "/v1/plans/{plan_id}/checkpoint"): {"model": "/models/tuned"},
    ("post", "/v1/storage/prune"): {"older_than_days": 30, "dry_run": True},
    ("post", "/v1/estimate"): SPEC,
}
"""The body of a request, by method and path; what is not here has none."""
ANSWERS: Mapping[tuple[str, str], Any] = {
    ("post", "/v1/jobs"): JOB | {"state": "queued", "started_at": None, "coordinator": None, "progress": None},
    ("get", "/v1/jobs"): {"jobs": [JOB_OUTLINE], "next": None},
    ("get", "/v1/jobs/{job_id}"): JOB,
    ("post", "/v1/jobs/{job_id}/pause"): JOB | {"request": "pause"},
    ("post", "/v1/jobs/{job_id}/resume"): JOB,
    ("post", "/v1/jobs/{job_id}/cancel"): JOB | {"request": "cancel"},
    ("post", "/v1/jobs/{job_id}/keep"): JOB | {"kept": "for the paper"},
    ("get", "/v1/jobs/{job_id}/report"): REPORT,
    ("get", "/v1/jobs/{job_id}/evaluations"): {"evaluations": [EVALUATION], "next": None},
    ("get", "/v1/jobs/{job_id}/factors"): FACTORS,
    ("get", "/v1/jobs/{job_id}/course"): COURSE,
    ("get", "/v1/jobs/{job_id}/downloads"): DOWNLOADS,
    ("get", "/v1/compare"): COMPARISON,
    ("post", "/v1/plans"): PLAN,
    ("get", "/v1/plans"): {"plans": [PLAN_OUTLINE], "next": None},
    ("get", "/v1/plans/{plan_id}"): PLAN,
    ("post", "/v1/plans/{plan_id}/pause"): PLAN | {"state": "paused"},
    ("post", "/v1/plans/{plan_id}/resume"): PLAN,
    ("post", "/v1/plans/{plan_id}/cancel"): PLAN | {"state": "cancelled", "ended_at": ENDED},
    ("post", "/v1/plans/{plan_id}/keep"): PLAN,
    ("post", "/v1/plans/{plan_id}/retry"): PLAN | {"state": "running"},
    ("post", "/v1/plans/{plan_id}/checkpoint"): PLAN | {"state": "running"},
    ("get", "/v1/plans/{plan_id}/factors"): FACTORS,
    ("get", "/v1/plans/{plan_id}/report"): PLAN_REPORT,
    ("post", "/v1/estimate"): ESTIMATE,
    ("get", "/v1/storage"): STORAGE,
    ("post", "/v1/storage/prune"): PRUNED,
    ("get", "/healthz"): {"status": "ok", "version": "0.2.0"},
    ("get", "/readyz"): {"status": "ready", "database": "reachable", "coordinators": 1, "age_seconds": 0.4},
    ("get", "/metrics"): 'factor_search_jobs{state="running"} 1.0\n',
}
"""The good answer, by method and path; that of an event stream is in its route, and a deletion answers with nothing."""


def add_examples(document: dict[str, Any]) -> None:
    """Put the examples into an OpenAPI document."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            place = (method, path)
            if place in REQUESTS:
                operation["requestBody"]["content"]["application/json"]["example"] = REQUESTS[place]
            for status, answer in operation["responses"].items():
                for kind, content in answer.get("content", {}).items():
                    if kind.endswith("problem+json") and status == "422":
                        content["example"] = ERROR | {"instance": path}
                    elif status.startswith("2") and place in ANSWERS and kind != "text/html":
                        content.setdefault("example", ANSWERS[place])
