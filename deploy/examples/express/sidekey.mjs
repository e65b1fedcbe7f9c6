// Express asks the sidekey agent beside it. It needs nothing but node.
//
//   import { sidekey, requireScope } from './sidekey.mjs'
//   app.use(sidekey({ agent: { socketPath: '/run/sidekey/agent.sock' } }))      // or { host: '127.0.0.1', port: 7461 }
//   app.get('/orders', (req, res) => res.json({ of: req.auth.subject }))
//   app.delete('/orders', requireScope('orders:write'), ...)
//
// Behind a proxy that ends TLS set app.set('trust proxy', ...) to that proxy: req.protocol and req.ip are told to the agent.
import http from 'node:http'

const fields = ['authorization', 'cookie', 'x-api-key', 'x-csrf-token', 'x-csrftoken', 'origin', 'sec-fetch-site', 'sec-fetch-mode',
  'x-requested-with', 'upgrade', 'access-control-request-method']
const maxAnswer = 1 << 20

// sidekey lets a request pass if the agent allows it: req.auth says who it is from. timeout is in milliseconds: 6000 where the agent has
// the authenticators basic or webhook. headers are more fields that your rules name.
export function sidekey ({ agent = { host: '127.0.0.1', port: 7461 }, timeout = 2000, headers = [] } = {}) {
  const connections = new http.Agent({ keepAlive: true, maxSockets: 64, timeout: 60_000 })
  const names = [...new Set([...fields, ...headers.map((name) => name.toLowerCase())])]
  return (req, res, next) => {
    const told = {}
    for (const name of names) {
      const values = req.headersDistinct[name] ?? []
      if (values.length > 1) return refuse(res, { status: 403, reason: 'ambiguous_request' })
      if (values.length === 1) told[name] = values[0]
    }
    const question = { method: req.method, scheme: req.protocol, host: req.headers.host ?? '', path: req.originalUrl, headers: told }
    if (req.ip) question.source_ip = req.ip
    ask({ ...agent, agent: connections }, timeout, JSON.stringify(question)).then((answer) => {
      if (answer.decision !== 'allow') return refuse(res, answer)
      for (const name of Object.keys(req.headers)) {
        if (name.replaceAll('_', '-').startsWith('x-auth-')) delete req.headers[name] // the client's own
      }
      const of = answer.headers
      req.auth = Object.freeze({
        subject: of['X-Auth-Subject'], method: of['X-Auth-Method'], client: of['X-Auth-Client'], session: of['X-Auth-Session'],
        scopes: of['X-Auth-Scope'].split(' ').filter(Boolean), roles: of['X-Auth-Roles'].split(',').filter(Boolean)
      })
      next()
    }, () => refuse(res, { status: 503, reason: 'unavailable', retry_after: 1 })).catch(next)
  }
}

// requireScope is for single routes, behind sidekey.
export function requireScope (...scopes) {
  return (req, res, next) => {
    if (req.auth && scopes.every((s) => req.auth.scopes.includes(s))) return next()
    const challenge = req.auth?.method === 'bearer' ? [`Bearer error="insufficient_scope", scope="${scopes.join(' ')}"`] : []
    refuse(res, { status: 403, reason: 'insufficient_scope', www_authenticate: challenge })
  }
}

// ask gives the agent's answer; whatever is none is an error.
function ask (agent, timeout, body) {
  return new Promise((resolve, reject) => {
    const options = { ...agent, method: 'POST', path: '/v1/check', signal: AbortSignal.timeout(timeout) }
    const req = http.request({ ...options, headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body), host: 'agent' } }, (res) => {
      const parts = []
      let size = 0
      res.on('data', (part) => {
        parts.push(part)
        if ((size += part.length) > maxAnswer) res.destroy(new Error('the answer is too long'))
      })
      res.on('error', reject)
      res.on('end', () => {
        try {
          const answer = JSON.parse(Buffer.concat(parts).toString())
          const allowed = answer.decision === 'allow' && answer.status === 200 && answer.headers['X-Auth-Method'] !== ''
          const denied = answer.decision === 'deny' && [401, 403, 429, 503].includes(answer.status)
          if (res.statusCode !== 200 || !(allowed || denied)) throw new Error('that is no answer')
          resolve(answer)
        } catch (e) {
          reject(e)
        }
      })
    })
    req.on('error', reject)
    req.end(body)
  })
}

function refuse (res, answer) {
  if (answer.www_authenticate?.length) res.setHeader('WWW-Authenticate', answer.www_authenticate)
  if (answer.retry_after) res.setHeader('Retry-After', answer.retry_after)
  res.setHeader('Cache-Control', 'no-store')
  res.status(answer.status).type('application/problem+json').send(JSON.stringify({
    type: 'about:blank', title: http.STATUS_CODES[answer.status], status: answer.status, reason: answer.reason
  }))
}
