"""The endpoints: a heavy one, a light one, Django's own metrics, and an echo of what arrived."""

import hashlib
import os
import time

from django.http import JsonResponse
from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from rest_framework.response import Response
from rest_framework.views import APIView

HEAVY_SECONDS = float(os.environ.get("HEAVY_SECONDS", "2"))


def envelope(data):
    return {"status": 0, "message": "OK", "data": data, "errors": None}


class LatestNdvi(APIView):
    """Blocks its worker, then answers without a word about how long the answer is good for."""

    def get(self, request, farm):
        time.sleep(HEAVY_SECONDS)
        return Response(envelope({"farm": farm, "ndvi": round(0.3 + farm % 50 / 100, 2), "generated": time.time()}))


class Light(APIView):
    """Costs nothing, and must never be stored."""

    def get(self, request):
        return Response(envelope({"now": time.time()}), headers={"Cache-Control": "no-store"})


@csrf_exempt
def echo(request, rest=""):
    """What arrived: the target as it was on the wire, the fields, and a digest of the body."""
    scope = getattr(request, "scope", None)
    if scope is not None:
        raw_path, raw_query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    else:
        raw_path, _, raw_query = request.META["RAW_URI"].partition("?")
    return JsonResponse({
        "method": request.method,
        "path": raw_path,
        "query": raw_query,
        "headers": dict(request.headers),
        "body_sha256": hashlib.sha256(request.body).hexdigest(),
    })


urlpatterns = [
    path("api/v1/farms/<int:farm>/ndvi/latest/", LatestNdvi.as_view()),
    path("api/v1/light/", Light.as_view()),
    re_path(r"^echo/(?P<rest>.*)$", echo),
    path("", include("django_prometheus.urls")),
]
