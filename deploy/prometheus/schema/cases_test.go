package schema

// alertCase is what fires an alert within 45 minutes, a sample every 30 s, and what does not. With days: within that time, a sample
// every 5 minutes.
type alertCase struct {
	fires, quiet string
	days         int
}

var cases = map[string]alertCase{
	"SidekeyTargetDown": {
		fires: `up{job="j",instance="a"} 1x10 0x80
sidekey_agent_info{job="j",instance="a",version="1"} 1x10`,
		quiet: `up{job="j",instance="a"} 1x10 0 0 0 1x80
sidekey_info{job="j",instance="a",version="1"} 1x10 _x3 1x80
up{job="j",instance="not-ours"} 0x90`,
	},
	"SidekeyAgentNotReady":     {fires: `sidekey_agent_ready{instance="a"} 1x5 0x90`, quiet: `sidekey_agent_ready{instance="a"} 0 1x5 0 0 1x90`},
	"SidekeyAgentServingStale": {fires: `sidekey_agent_serving_stale{instance="a"} 0x5 1x90`, quiet: `sidekey_agent_serving_stale{instance="a"} 1 0x90`},
	"SidekeyAgentLogFault":     {fires: `sidekey_agent_log_fault{instance="a"} 0x5 1x90`, quiet: `sidekey_agent_log_fault{instance="a"} 0x90`},
	"SidekeyAgentRulesFault":   {fires: `sidekey_agent_rules_fault{instance="a"} 0x5 1x90`, quiet: `sidekey_agent_rules_fault{instance="a"} 0 1 0x90`},
	"SidekeyAgentDisconnected": {fires: `sidekey_agent_connected{instance="a"} 1x5 0x90`, quiet: `sidekey_agent_connected{instance="a"} 1x5 0 0 0 1x90`},
	"SidekeyAgentLeaseEnding": {
		fires: `sidekey_agent_lease_seconds{instance="a"} 900 800 700 900 800 700 900-30x29`,
		quiet: `sidekey_agent_lease_seconds{instance="a"} 900 750 610 880 700 890 600 870x80
sidekey_agent_lease_seconds{instance="five-seconds"} 5 3.4 4.1 3.9 5 4.7x80
sidekey_agent_lease_seconds{instance="without"} 900x5 0x80`,
	},
	"SidekeyAgentNotApplying": {
		fires: `sidekey_agent_applied_seq{instance="a"} 10x90
sidekey_agent_head_seq{instance="a"} 10x5 12x90`,
		quiet: `sidekey_agent_applied_seq{instance="busy"} 0+30000x90
sidekey_agent_head_seq{instance="busy"} 500+30000x90`,
	},
	"SidekeyAgentClockOff": {fires: `sidekey_agent_clock_off_seconds{instance="a"} -40x90`, quiet: `sidekey_agent_clock_off_seconds{instance="a"} 29x20 -29x20 50 0x40`},
	"SidekeyAgentPanics":   {fires: `sidekey_agent_panics_total{instance="a"} 0x10 1x80`, quiet: `sidekey_agent_panics_total{instance="a"} 3x90`},

	"SidekeyAgentsInFault": {
		fires: `sidekey_agents{instance="i",state="serving"} 0x5 1x80`,
		quiet: `sidekey_agents{instance="i",state="fault"} 0x90
sidekey_agents{instance="i",state="silent"} 4x90`,
	},
	"SidekeyAgentsUnwell": {
		fires: `sidekey_agents{instance="i",state="silent"} 0x5 1x80`,
		quiet: `sidekey_agents{instance="i",state="stale"} 0x5 2 1 0x80
sidekey_agents{instance="i",state="ok"} 9x90`,
	},
	"SidekeyAgentsLag":   {fires: `sidekey_agents_lag_seconds{instance="i"} 0x5 0+30x80`, quiet: `sidekey_agents_lag_seconds{instance="i"} 0x5 45 0x10 20x80`},
	"SidekeyUnconfirmed": {fires: `sidekey_unconfirmed_total{instance="i"} 0x20 1x70`, quiet: `sidekey_unconfirmed_total{instance="i"} 7x90`},
	"SidekeyEpochChanged": {days: 1, fires: `sidekey_agent_epoch{instance="a"} 1x100 2x200`, quiet: `sidekey_agent_epoch{instance="a"} 2x100 0 0 2x200
sidekey_agent_epoch{instance="b"} 2x300`},

	"SidekeyNoIssuerReady": {
		fires: `sidekey_ready{instance="a"} 1x5 0x80
sidekey_ready{instance="b"} 1x2 0x80`,
		quiet: `sidekey_ready{instance="a"} 1x5 0x80
sidekey_ready{instance="b"} 0 0 1x90`,
	},
	"SidekeyIssuerNotReady": {fires: `sidekey_ready{instance="a"} 1x5 0x80`, quiet: `sidekey_ready{instance="a"} 1x5 0 1x80`},
	"SidekeyIssuersDisagree": {
		fires: `sidekey_applied_seq{instance="a"} 0+10x90
sidekey_applied_seq{instance="b"} 0+10x20 200x70`,
		quiet: `sidekey_applied_seq{instance="a"} 100+30000x90
sidekey_applied_seq{instance="b"} 0+30000x90
sidekey_applied_seq{fleet="another",instance="c"} 4x90`,
	},
	"SidekeyDuty": {
		fires: `sidekey_duty{instance="a"} 1x5 0x80
sidekey_duty{instance="b"} 0x90`,
		quiet: `sidekey_duty{instance="a"} 1x5 0x80
sidekey_duty{instance="b"} 0x6 1x80
sidekey_duty{fleet="another",instance="c"} 1x90`,
	},
	"SidekeyDutyFlaps":       {fires: `sidekey_duty_taken_total{instance="a"} 0+0.1x90`, quiet: `sidekey_duty_taken_total{instance="a"} 0x10 1x30 2x50`},
	"SidekeyIssuerClockOff":  {fires: `sidekey_clock_off_seconds{instance="a"} 0x5 -6x80`, quiet: `sidekey_clock_off_seconds{instance="a"} 4x30 -4x30 9 0x30`},
	"SidekeyStateRolledBack": {fires: `sidekey_state_rolled_back{instance="a"} 0x5 1x80`, quiet: `sidekey_state_rolled_back{instance="a"} 0x90`},
	"SidekeyIssuerErrors": {
		fires: `sidekey_http_requests_total{instance="a",route="POST /api/token/",status="200"} 0+90x90
sidekey_http_requests_total{instance="a",route="POST /api/token/",status="503"} 0+10x90`,
		quiet: `sidekey_http_requests_total{instance="a",route="POST /api/token/",status="200"} 0+99x90
sidekey_http_requests_total{instance="a",route="POST /api/token/",status="401"} 0+99x90
sidekey_http_requests_total{instance="a",route="POST /api/token/",status="500"} 0+1x90
sidekey_http_requests_total{instance="a",route="GET /readyz",status="503"} 0+99x90`,
	},
	"SidekeyLoginsBusy": {
		fires: `sidekey_logins_total{instance="a",outcome="busy"} 0+1x90`,
		quiet: `sidekey_logins_total{instance="a",outcome="busy"} 0x30 5x60
sidekey_logins_total{instance="a",outcome="ok"} 0+50x90`,
	},

	"SidekeyRotationOverdue": {fires: `sidekey_rotation_due_seconds{instance="a"} 0-300x90`, quiet: `sidekey_rotation_due_seconds{instance="a"} 600-30x60 2592000x30`},
	"SidekeyCertificateEnding": {
		fires: `sidekey_agent_certificate_expiry_timestamp_seconds{instance="a"} 864000x90`,
		quiet: `sidekey_certificate_expiry_timestamp_seconds{instance="a"} 1382400x90
sidekey_agent_certificate_expiry_timestamp_seconds{instance="b"} 9382400x90`,
	},
	"SidekeyCertificateEnds": {
		fires: `sidekey_certificate_expiry_timestamp_seconds{instance="a"} 86400x90`,
		quiet: `sidekey_certificate_expiry_timestamp_seconds{instance="a"} 345600x90`,
	},

	"SidekeyAppendSlow": {
		fires: `sidekey_append_seconds_bucket{instance="a",le="0.512"} 0+10x90
sidekey_append_seconds_bucket{instance="a",le="1.024"} 0+30x90
sidekey_append_seconds_bucket{instance="a",le="+Inf"} 0+30x90`,
		quiet: `sidekey_append_seconds_bucket{instance="a",le="0.004"} 0+29x90
sidekey_append_seconds_bucket{instance="a",le="0.008"} 0+30x90
sidekey_append_seconds_bucket{instance="a",le="+Inf"} 0+30x90`,
	},
	"SidekeyLogStill": {
		fires: `sidekey_append_seconds_count{instance="a"} 0+30x20 600x70
sidekey_append_seconds_count{instance="b"} 9x90`,
		quiet: `sidekey_append_seconds_count{instance="a"} 0+30x20 600x70
sidekey_append_seconds_count{instance="b"} 9x20 9+30x90`,
	},
	"SidekeyCheckpointOld": {
		fires: `sidekey_bus_checkpoint_timestamp_seconds{instance="a"} 60x180
sidekey_bus_checkpoint_seq{instance="a"} 10x180
sidekey_applied_seq{instance="a"} 20x180`,
		quiet: `sidekey_bus_checkpoint_timestamp_seconds{instance="a"} 60x180
sidekey_bus_checkpoint_seq{instance="a"} 10x180
sidekey_applied_seq{instance="a"} 10x180
sidekey_bus_checkpoint_timestamp_seconds{fleet="b"} 0+300x180
sidekey_bus_checkpoint_seq{fleet="b"} 10+7x180
sidekey_applied_seq{fleet="b"} 20+7x180`, days: 1,
	},
	"SidekeyBusDisconnected": {fires: `sidekey_bus_connected{instance="a"} 1x5 0x80`, quiet: `sidekey_bus_connected{instance="a"} 1x5 0 1x80`},
	"SidekeyBusFlaps":        {fires: `sidekey_bus_reconnects_total{instance="a"} 0+0.5x80`, quiet: `sidekey_bus_reconnects_total{instance="a"} 0x5 1x20 2x60`},
	"SidekeyBusNoLeader": {
		fires: `sidekey_bus_stream_has_leader{instance="a",stream="log"} 1x5 0x80
sidekey_bus_stream_has_leader{instance="b",stream="log"} 1x6 0x80`,
		quiet: `sidekey_bus_stream_has_leader{instance="a",stream="log"} 1x5 0x80
sidekey_bus_stream_has_leader{instance="b",stream="log"} 1x90
sidekey_bus_server_has_meta_leader{instance="a"} 1x5 0 1x80`,
	},
	"SidekeyBusReplicasBehind": {
		fires: `sidekey_bus_stream_replicas_behind{instance="a",stream="log"} 0x5 1x80`,
		quiet: `sidekey_bus_stream_replicas_behind{instance="a",stream="log"} 0x5 1 1 1 0x80`,
	},
	"SidekeyBusStorage": {
		fires: `sidekey_bus_store_bytes{instance="a"} 0+2x90
sidekey_bus_store_limit_bytes{instance="a"} 100x90`,
		quiet: `sidekey_bus_store_bytes{instance="a"} 79x90
sidekey_bus_store_limit_bytes{instance="a"} 100x90
sidekey_bus_store_bytes{fleet="without-limit"} 790x90`,
	},
	"SidekeyBusStorageFull": {
		fires: `sidekey_bus_store_bytes{instance="a"} 96x90
sidekey_bus_store_limit_bytes{instance="a"} 100x90`,
		quiet: `sidekey_bus_store_bytes{instance="a"} 94x90
sidekey_bus_store_limit_bytes{instance="a"} 100x90`,
	},
	"SidekeyBusSlowConsumers": {
		fires: `sidekey_bus_server_slow_consumers_total{instance="a"} 0+1x90`,
		quiet: `sidekey_bus_server_slow_consumers_total{instance="a"} 0x20 2x70`,
	},
	"SidekeyBusNotSynced": {
		fires: `sidekey_bus_synced{instance="a"} 0x90
sidekey_bus_synced{instance="b"} 1x90`,
		quiet: `sidekey_bus_synced{instance="a"} 1x20 0x10 1x60
sidekey_bus_connected{instance="a"} 1x90
sidekey_bus_connected{instance="joined-a"} 1x90`,
	},
	"SidekeyBusUnseen": {
		fires: `sidekey_bus_looked_timestamp_seconds{instance="a"} 0+30x20 600x70
sidekey_bus_look_failed{instance="a"} 0x90`,
		quiet: `sidekey_bus_looked_timestamp_seconds{instance="a"} 0+30x90
sidekey_bus_look_failed{instance="a"} 0x20 1 1 0x70`,
	},

	"SidekeyLoginGuesses": {
		fires: `sidekey_logins_total{instance="a",outcome="limited"} 0+1x90
sidekey_basic_checks_total{instance="a",outcome="limited"} 0+1x90`,
		quiet: `sidekey_logins_total{instance="a",outcome="limited"} 0x30 9x60
sidekey_basic_checks_total{instance="a",outcome="limited"} 0x90
sidekey_logins_total{instance="a",outcome="ok"} 0+100x90`,
	},
	"SidekeyLoginsDenied": {
		fires: `sidekey_logins_total{instance="a",outcome="denied"} 0+20x90
sidekey_logins_total{instance="a",outcome="ok"} 0+10x90`,
		quiet: `sidekey_logins_total{instance="a",outcome="denied"} 0+20x90
sidekey_logins_total{instance="a",outcome="ok"} 0+100x90
sidekey_logins_total{fleet="small",outcome="denied"} 0+2x90
sidekey_logins_total{fleet="small",outcome="ok"} 0x90`,
	},
	"SidekeyRefreshReuses": {
		days:  2,
		fires: `sidekey_refresh_reuses_total{instance="a"} 0+0.02x400 8+2x100`,
		quiet: `sidekey_refresh_reuses_total{instance="a"} 0+0.02x500
sidekey_refresh_reuses_total{fleet="large"} 0+0.35x300 106+1x270`,
	},
	"SidekeyAuditLost":   {fires: `sidekey_audit_lost_total{instance="a",reason="file"} 0x20 4x70`, quiet: `sidekey_audit_lost_total{instance="a",reason="file"} 4x90`},
	"SidekeyAuditBroken": {fires: `sidekey_audit_broken_total{instance="a"} 0x20 1x70`, quiet: `sidekey_audit_broken_total{instance="a"} 1x90`},
}

// healthy is a fleet for an hour, in which each issuer and agent restarts once.
const healthy = `
up{job="issuers",instance="i1"} 1x40 0 0 1x80
up{job="agents",instance="a1"} 1x60 0 1x80
sidekey_info{job="issuers",instance="i1",version="1"} 1x40 _ _ 1x80
sidekey_agent_info{job="agents",instance="a1",version="1"} 1x60 _ 1x80
sidekey_ready{instance="i1"} 1x40 _ _ 0 1x80
sidekey_ready{instance="i2"} 1x120
sidekey_ready{instance="i3"} 0 1x120
sidekey_duty{instance="i1"} 1x40 _ _ 0x80
sidekey_duty{instance="i2"} 0x41 1x80
sidekey_duty{instance="i3"} 0x120
sidekey_duty_taken_total{instance="i1"} 1x40 _ _ 0x80
sidekey_duty_taken_total{instance="i2"} 0x41 1x80
sidekey_applied_seq{instance="i1"} 100+31x40 _ _ 1432+31x80
sidekey_applied_seq{instance="i2"} 90+31x120
sidekey_applied_seq{instance="i3"} 95+31x120
sidekey_append_seconds_count{instance="i1"} 0+30x40 _ _ 0x80
sidekey_append_seconds_count{instance="i2"} 0x41 0+30x80
sidekey_clock_off_seconds{instance="i1"} 0.1x40 _ _ -0.2x80
sidekey_state_rolled_back{instance="i1"} 0x40 _ _ 0x80
sidekey_agents{instance="i1",state="ok"} 2x40 _ _ 0 2x80
sidekey_agents{instance="i1",state="silent"} 0x40 _ _ 2 0x80
sidekey_agents{instance="i2",state="ok"} 2x61 1 2x60
sidekey_agents{instance="i2",state="stale"} 0x61 1 0x60
sidekey_agents_lag_seconds{instance="i2"} 0x60 15 0x60
sidekey_rotation_due_seconds{instance="i2"} 900-30x31 2592000-30x90
sidekey_certificate_expiry_timestamp_seconds{instance="i2"} 7776000x120
sidekey_http_requests_total{instance="i2",route="POST /api/token/",status="200"} 0+40x120
sidekey_logins_total{instance="i2",outcome="ok"} 0+30x120
sidekey_logins_total{instance="i2",outcome="denied"} 0+4x120
sidekey_bus_connected{instance="i1"} 1x40 _ _ 1x80
sidekey_bus_reconnects_total{instance="i2"} 0x41 1x80
sidekey_bus_looked_timestamp_seconds{instance="i2"} 0+30x120
sidekey_bus_look_failed{instance="i2"} 0x120
sidekey_bus_synced{instance="i2"} 1x120
sidekey_bus_checkpoint_timestamp_seconds{instance="i2"} 0x20 600x20 1200x20 1800x20 2400x20 3000x20
sidekey_bus_checkpoint_seq{instance="i2"} 90x20 700x20 1300x20 1900x20 2500x20 3100x20
sidekey_bus_stream_has_leader{instance="i2",stream="log"} 1x40 0 1x80
sidekey_bus_stream_replicas_behind{instance="i2",stream="log"} 0x40 1 1 1 0x80
sidekey_bus_store_bytes{instance="i2"} 1000+10x120
sidekey_bus_store_limit_bytes{instance="i2"} 100000x120
sidekey_bus_server_has_meta_leader{instance="i2"} 1x120
sidekey_agent_ready{instance="a1"} 1x60 _ 0 1x60
sidekey_agent_connected{instance="a1"} 1x60 _ 0 1x60
sidekey_agent_epoch{instance="a1"} 1x60 _ 0 1x60
sidekey_agent_applied_seq{instance="a1"} 80+31x60 _ 0 2002+31x60
sidekey_agent_head_seq{instance="a1"} 110+31x60 _ 0 2012+31x60
sidekey_agent_lease_seconds{instance="a1"} 900-30x10 890-30x10 870-30x10 900-30x10 880-30x9 890-30x4 _ 0 880-30x10 900-30x8 900x50
sidekey_agent_clock_off_seconds{instance="a1"} 0.4x60 _ 0x60
sidekey_agent_panics_total{instance="a1"} 0x60 _ 0x60
sidekey_agent_rules_fault{instance="a1"} 0x60 _ 0x60
sidekey_agent_log_fault{instance="a1"} 0x60 _ 0x60
`
