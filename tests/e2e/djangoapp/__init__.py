"""A small Django project that is slow the way real ones are: synchronous workers waiting for remote data.

Run with the folder above on the Python path:
    gunicorn -w 4 djangoapp.wsgi          (WSGI)
    uvicorn djangoapp.asgi:application    (ASGI)
HEAVY_SECONDS is how long one heavy call blocks its worker (2).
"""
