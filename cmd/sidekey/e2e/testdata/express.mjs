// The service of TestExpressExample: node app.mjs PORT AGENT_PORT.
import express from 'express'
import { requireScope, sidekey } from './sidekey.mjs'

const app = express()
const show = (req, res) => res.json({ subject: req.auth?.subject ?? null, scopes: req.auth?.scopes.toSorted() ?? [] })
app.get('/open', show)
app.use(sidekey({ agent: { host: '127.0.0.1', port: Number(process.argv[3]) } }))
app.get('/whoami', show)
app.get('/write', requireScope('write'), show)
app.get('/admin', requireScope('admin'), show)
app.listen(Number(process.argv[2]), '127.0.0.1')
