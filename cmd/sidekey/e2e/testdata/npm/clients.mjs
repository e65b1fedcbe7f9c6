// node clients.mjs: unmodified jose and oauth4webapi against an issuer. The input is JSON on standard input, from
// npm_clients_test.go; what they find goes to standard output as JSON. It is run beside node_modules.
import { readFileSync } from 'node:fs'
import * as jose from 'jose'
import * as oauth from 'oauth4webapi'

const input = JSON.parse(readFileSync(0, 'utf8'))
const http = { [oauth.allowInsecureRequests]: true } // the suite's issuer is on loopback, without TLS
const issuer = new URL(input.issuer)
const found = {}

// Both ways of discovery give the same.
const discover = async (algorithm) =>
  oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { ...http, algorithm }))
const as = await discover('oauth2')
const oidc = await discover('oidc')
found.same = JSON.stringify(as) === JSON.stringify(oidc)

const client = { client_id: 'npm' }
const robot = { client_id: 'robot' }
const key = await jose.importJWK(input.jwk, 'ES256')
const ways = [
  [client, oauth.ClientSecretBasic(input.secret)],
  [client, oauth.ClientSecretPost(input.secret)],
  [robot, oauth.PrivateKeyJwt({ key, kid: input.jwk.kid })],
]
found.tokens = []
for (const [who, auth] of ways) {
  const response = await oauth.clientCredentialsGrantRequest(as, who, auth, { scope: 'read', resource: input.audience }, http)
  const got = await oauth.processClientCredentialsResponse(as, who, response)

  // As a resource server: RFC 9068, from the metadata's JWKS.
  const request = new Request('http://service.example/', { headers: { authorization: `Bearer ${got.access_token}` } })
  const claims = await oauth.validateJwtAccessToken(as, request, input.audience, http)

  // jose alone, with the same JWKS.
  const keys = jose.createRemoteJWKSet(new URL(as.jwks_uri))
  const { payload } = await jose.jwtVerify(got.access_token, keys, {
    issuer: input.issuer, audience: input.audience, typ: 'at+jwt', algorithms: ['RS256'],
  })

  const active = async () =>
    (await oauth.processIntrospectionResponse(as, who, await oauth.introspectionRequest(as, who, auth, got.access_token, http))).active
  const before = await active()
  await oauth.processRevocationResponse(await oauth.revocationRequest(as, who, auth, got.access_token, http))
  found.tokens.push({ sub: claims.sub, scope: payload.scope, expires: got.expires_in, before, after: await active() })
}

// A user's session, as the public default client.
const app = { client_id: 'sidekey' }
const again = await oauth.processRefreshTokenResponse(
  as, app, await oauth.refreshTokenGrantRequest(as, app, oauth.None(), input.refresh, http))
found.refreshed = again.refresh_token !== input.refresh && jose.decodeJwt(again.access_token).user_id !== undefined

// A gateway's exchange for less.
const exchanged = await oauth.processGenericTokenEndpointResponse(as, client, await oauth.genericTokenEndpointRequest(
  as, client, ways[0][1], 'urn:ietf:params:oauth:grant-type:token-exchange',
  { subject_token: again.access_token, subject_token_type: 'urn:ietf:params:oauth:token-type:access_token', scope: 'read' }, http))
found.exchanged = jose.decodeJwt(exchanged.access_token).scope

// What they say of a refusal.
try {
  const response = await oauth.clientCredentialsGrantRequest(as, client, oauth.ClientSecretBasic('wrong'), {}, http)
  await oauth.processClientCredentialsResponse(as, client, response)
} catch (err) {
  found.refused = { code: err.code, error: err.error ?? err.cause?.[0]?.scheme, status: err.status }
}
console.log(JSON.stringify(found))
