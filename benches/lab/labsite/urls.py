"""The endpoints: a heavy one, synchronous and asynchronous, a light one, and Django's own metrics."""

import json
import os
import time
import urllib.request

import httpx
from django.http import JsonResponse
from django.urls import path
from django_prometheus.exports import ExportToDjangoView
from djangoapp.urls import Light, envelope
from prometheus_client import Gauge
from rest_framework.response import Response
from rest_framework.views import APIView

COMPUTE = f"http://127.0.0.1:{os.environ['COMPUTE_PORT']}/ndvi/"
TIMEOUT_S = 30
ASGI = os.environ.get("LAB_ASGI") == "1"

# Its value as Prometheus stores it, beside the time of the sample, tells how old the metrics were when they arrived.
GENERATED = Gauge("lab_generated_seconds", "When these metrics were made", multiprocess_mode="max")


def latest(farm, ndvi):
    return envelope({"farm": farm, "ndvi": ndvi["mean"], "generated": time.time()})


class LatestNdvi(APIView):
    """Holds its worker until the service has answered, as requests or urllib do."""

    def get(self, request, farm):
        with urllib.request.urlopen(f"{COMPUTE}{farm}", timeout=TIMEOUT_S) as answer:
            return Response(latest(farm, json.load(answer)))


async def latest_ndvi(request, farm):
    """The same without holding anything: what moving to ASGI is about. (REST Framework has no asynchronous views.)"""
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        answer = await client.get(f"{COMPUTE}{farm}")
        answer.raise_for_status()
    return JsonResponse(latest(farm, answer.json()), headers={"Vary": "Accept"})


def metrics(request):
    GENERATED.set(time.time())
    return ExportToDjangoView(request)


urlpatterns = [
    path("api/v1/farms/<int:farm>/ndvi/latest/", latest_ndvi if ASGI else LatestNdvi.as_view(), name="heavy"),
    path("api/v1/light/", Light.as_view(), name="light"),
    path("metrics", metrics, name="metrics"),
]
