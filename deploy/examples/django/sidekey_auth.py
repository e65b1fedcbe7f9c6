"""Django REST Framework asks the sidekey agent beside it: authentication and permission, with the standard library alone.

settings.py:

    SIDEKEY_AGENT = 'unix:/run/sidekey/agent.sock'        # or '127.0.0.1:7461'
    REST_FRAMEWORK = {
        'DEFAULT_AUTHENTICATION_CLASSES': ['sidekey_auth.SidekeyAuthentication'],
        'DEFAULT_PERMISSION_CLASSES': ['rest_framework.permissions.IsAuthenticated'],
    }

request.user is a Principal; request.auth is what the agent said. A request without a credential is anonymous, so that views with
AllowAny answer; a wrong credential is refused everywhere. With agent.rules the agent's 403 is final, also for AllowAny.
Behind a proxy that ends TLS set SECURE_PROXY_SSL_HEADER, or sessions fail the agent's check of Origin.
"""
import http.client
import json
import socket

from django.conf import settings
from rest_framework import authentication, exceptions, permissions

TIMEOUT = 2  # seconds, of each step. 6 where the agent has the authenticators basic or webhook
MAX_ANSWER = 1 << 20
FIELDS = [  # the credentials and what the agent reads beside them; add what your rules name
    'Authorization', 'Cookie', 'X-API-Key', 'X-CSRF-Token', 'X-CSRFToken', 'Origin', 'Sec-Fetch-Site', 'Sec-Fetch-Mode',
    'X-Requested-With', 'Upgrade', 'Access-Control-Request-Method',
]


class Unavailable(exceptions.APIException):
    status_code = 503
    default_detail = 'Who this is from cannot be checked now.'
    default_code = 'unavailable'

    def __init__(self, wait=1):
        super().__init__()
        self.wait = wait  # which the framework answers as Retry-After


class Principal:
    """Whom a request is from. It is no row of a database: look yours up by its id where you need one."""
    is_authenticated, is_anonymous, is_active = True, False, True

    def __init__(self, headers):
        self.id = self.pk = self.username = headers['X-Auth-Subject']
        self.scopes = frozenset(headers['X-Auth-Scope'].split())
        self.roles = frozenset(filter(None, headers['X-Auth-Roles'].split(',')))
        self.client, self.session, self.method = headers['X-Auth-Client'], headers['X-Auth-Session'], headers['X-Auth-Method']

    def __str__(self):
        return self.id


class SidekeyAuthentication(authentication.BaseAuthentication):
    def authenticate(self, request):
        answer = check(request)
        request._request.sidekey_challenges = ', '.join(answer['www_authenticate'])
        if answer['decision'] == 'allow':
            if not answer['headers']['X-Auth-Subject']:
                return None  # a rule lets everybody pass
            return Principal(answer['headers']), answer
        if answer['status'] == 401:
            if answer['reason'] == 'missing':
                return None  # nobody: what that may do is the view's to say
            raise exceptions.AuthenticationFailed(code=answer['reason'])
        if answer['status'] == 403:
            raise Forbidden(answer)
        if answer['status'] == 429:
            raise exceptions.Throttled(answer.get('retry_after', 1))
        raise Unavailable(answer.get('retry_after', 1))

    def authenticate_header(self, request):
        """WWW-Authenticate of a 401: all of the agent's challenges (RFC 9110, 11.6.1, allows them in one field)."""
        return getattr(request._request, 'sidekey_challenges', '') or 'Bearer'


class Forbidden(exceptions.PermissionDenied):
    def __init__(self, answer):
        super().__init__(code=answer['reason'])
        if answer['www_authenticate']:
            self.auth_header = ', '.join(answer['www_authenticate'])


class HasScope(permissions.BasePermission):
    """permission_classes = [HasScope.of('orders:write')]"""
    scopes = frozenset()

    @classmethod
    def of(cls, *scopes):
        return type('HasScope', (cls,), {'scopes': frozenset(scopes)})

    def has_permission(self, request, view):
        return isinstance(request.user, Principal) and self.scopes <= request.user.scopes


class _Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


def check(request):
    """What the agent says of a request. Whatever is not its answer is a refusal: 503."""
    meta = request.META
    headers = {name: request.headers[name] for name in FIELDS if name in request.headers}
    path = meta.get('RAW_URI') or meta.get('REQUEST_URI')  # as the client sent it: gunicorn, uwsgi and mod_wsgi have it
    if not path:  # the decoded path cannot be told apart from another
        path = request.get_full_path()
    question = {'method': request.method, 'scheme': request.scheme, 'host': meta.get('HTTP_HOST', ''), 'path': path, 'headers': headers}
    if meta.get('REMOTE_ADDR'):
        question['source_ip'] = meta['REMOTE_ADDR']
    where = getattr(settings, 'SIDEKEY_AGENT', '127.0.0.1:7461')
    kind, at = (_Unix, where[5:]) if where.startswith('unix:') else (http.client.HTTPConnection, where)
    connection = kind(at, timeout=TIMEOUT)
    try:
        connection.request('POST', '/v1/check', json.dumps(question), {'Content-Type': 'application/json', 'Host': 'agent'})
        response = connection.getresponse()
        body = response.read(MAX_ANSWER)
        if response.status != 200:
            raise Unavailable()
        answer = json.loads(body)
        allowed = answer['decision'] == 'allow' and answer['status'] == 200 and answer['headers']['X-Auth-Method'] != ''
        denied = answer['decision'] == 'deny' and answer['status'] in (401, 403, 429, 503)
        if not (allowed or denied) or not isinstance(answer['www_authenticate'], list):
            raise Unavailable()
        return answer
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as e:
        raise Unavailable() from e
    finally:
        connection.close()
