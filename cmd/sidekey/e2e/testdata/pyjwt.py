"""Verifies an access token as PyJWT's users do: keys from the issuer's JWK Set, found by kid."""
import json
import sys

import jwt

issuer, token = sys.argv[1:]
key = jwt.PyJWKClient(issuer + "/.well-known/jwks.json").get_signing_key_from_jwt(token)
claims = jwt.decode(token, key.key, algorithms=["RS256"], audience=issuer, issuer=issuer)
print(json.dumps(claims))
