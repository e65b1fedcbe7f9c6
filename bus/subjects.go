package bus

// DefaultPrefix begins every subject, and names every stream and bucket, of a sidekey.
const DefaultPrefix = "sidekey"

// What the subjects begin with on which agents and those who join hear answers; each has its own
// below: an agent's encoded name, a join token's id.
const (
	agentInbox = "_INBOX_AGENT"
	joinInbox  = "_INBOX_JOIN"
)

// subjects makes the names that a sidekey uses on NATS, from its prefix:
//
//	<prefix>.log.<kind>             the log, stream <prefix>_log
//	<prefix>.live.<kind>            the same, republished on core NATS
//	<prefix>.checkpoint.manifest    what a checkpoint is, stream <prefix>_checkpoint
//	<prefix>.checkpoint.chunk.<id>  its image, in pieces
//	<prefix>.join.<token id>        one who has a join token asks to be let in; an issuer answers
//	<prefix>.removed                an issuer has removed somebody; for the one that has the bus's keys
//	<prefix>.ack.<agent>            an agent has applied all up to a position
//	<prefix>.lease.<agent>          an agent asks for a lease; an issuer answers
//	<prefix>.grants                 which leases a tick answers, stream <prefix>_grants, for issuers
//	<prefix>.audit.<issuer>         who did what, sealed; stream <prefix>_audit, for issuers
//	<prefix>.status.<agent>         an agent tells how it is
//	<prefix>.used.<agent>           an agent tells which credentials were used, and when; an issuer confirms
//	<prefix>.basic.<agent>          an agent asks whether a password is right; an issuer answers
//	<prefix>.ask                    an issuer asks every agent what it says of one token
//	<prefix>.answer.<agent>         an agent's answer to that
//	<prefix>.up                     an issuer asks which issuers are up; each answers
//	KV_<prefix>_<bucket>            a state bucket
type subjects string

func prefixOr(prefix string) string {
	if prefix == "" {
		return DefaultPrefix
	}
	return prefix
}

func (s subjects) log(k Kind) string          { return string(s) + ".log." + string(k) }
func (s subjects) live(kind string) string    { return string(s) + ".live." + kind }
func (s subjects) manifest() string           { return string(s) + ".checkpoint.manifest" }
func (s subjects) chunk(id string) string     { return string(s) + ".checkpoint.chunk." + id }
func (s subjects) join(id string) string      { return string(s) + ".join." + id }
func (s subjects) up() string                 { return string(s) + ".up" }
func (s subjects) removed() string            { return string(s) + ".removed" }
func (s subjects) ack(agent string) string    { return string(s) + ".ack." + agent }
func (s subjects) status(agent string) string { return string(s) + ".status." + agent }
func (s subjects) used(agent string) string   { return string(s) + ".used." + agent }
func (s subjects) basic(agent string) string  { return string(s) + ".basic." + agent }
func (s subjects) ask() string                { return string(s) + ".ask" }
func (s subjects) answer(agent string) string { return string(s) + ".answer." + agent }
func (s subjects) lease(agent string) string  { return string(s) + ".lease." + agent }
func (s subjects) grants() string             { return string(s) + ".grants" }
func (s subjects) grantsStream() string       { return string(s) + "_grants" }
func (s subjects) audit(issuer string) string { return string(s) + ".audit." + issuer }
func (s subjects) auditStream() string        { return string(s) + "_audit" }
func (s subjects) logStream() string          { return string(s) + "_log" }
func (s subjects) checkpointStream() string   { return string(s) + "_checkpoint" }
func (s subjects) bucket(name string) string  { return string(s) + "_" + name }
