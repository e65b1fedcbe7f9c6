package issuer

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidekey/sidekey/keyring"
)

// metrics are the issuer's. No label ever holds what a client chose.
type metrics struct {
	logins, refreshes   *prometheus.CounterVec
	basic               *prometheus.CounterVec
	reuses, revocations prometheus.Counter
	oauthTokens         *prometheus.CounterVec
	hashing             prometheus.Histogram
	requests, renewals  *prometheus.CounterVec
	auditLost           *prometheus.CounterVec
	auditBroken         prometheus.Counter
	confirmed           prometheus.Histogram
	unconfirmed         prometheus.Counter
}

func newMetrics(reg *prometheus.Registry, replica Replica, clockOff func() time.Duration) *metrics {
	m := &metrics{
		logins:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sidekey_logins_total", Help: "Logins, by outcome."}, []string{"outcome"}),
		refreshes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sidekey_refreshes_total", Help: "Refreshes, by outcome."}, []string{"outcome"}),
		basic:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sidekey_basic_checks_total", Help: "Passwords that agents asked about, by outcome."}, []string{"outcome"}),
		renewals:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sidekey_session_renewals_total", Help: "Renewals of browser sessions, by outcome."}, []string{"outcome"}),
		oauthTokens: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sidekey_oauth_tokens_total", Help: "Answers of POST /oauth2/token, by grant and outcome."}, []string{"grant", "outcome"}),
		reuses:      prometheus.NewCounter(prometheus.CounterOpts{Name: "sidekey_refresh_reuses_total", Help: "Sessions ended because a refresh token was used twice."}),
		revocations: prometheus.NewCounter(prometheus.CounterOpts{Name: "sidekey_revocations_total", Help: "Revocations that this issuer appended to the log."}),
		hashing: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sidekey_password_hash_seconds", Help: "Time of one password hash.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 9)}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sidekey_http_requests_total", Help: "Requests, by route and status."}, []string{"route", "status"}),
	}
	m.auditLost = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sidekey_audit_lost_total", Help: "Audit events that were not written, by why."}, []string{"reason"})
	m.auditBroken = prometheus.NewCounter(prometheus.CounterOpts{Name: "sidekey_audit_broken_total", Help: "Times that records of this issuer's were found to be gone from the audit."})
	m.confirmed = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sidekey_confirm_seconds", Help: "Time until what was waited for was confirmed by the whole fleet.",
		Buckets: prometheus.ExponentialBuckets(0.002, 2.5, 12)})
	m.unconfirmed = prometheus.NewCounter(prometheus.CounterOpts{Name: "sidekey_unconfirmed_total", Help: "Times that a wait for the fleet ended without confirmation."})
	for _, reason := range []string{"queue", "stream", "file", "flood"} {
		m.auditLost.WithLabelValues(reason)
	}
	for _, o := range []string{"ok", "denied", "limited", "busy", "unavailable"} {
		m.logins.WithLabelValues(o)
		m.refreshes.WithLabelValues(o)
		m.basic.WithLabelValues(o)
		m.renewals.WithLabelValues(o)
	}
	for _, g := range oauthGrants {
		m.oauthTokens.WithLabelValues(g, "ok")
	}
	reg.MustRegister(m.logins, m.refreshes, m.oauthTokens, m.renewals, m.basic, m.reuses, m.revocations, m.hashing, m.requests, m.auditLost, m.auditBroken, m.confirmed, m.unconfirmed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sidekey_applied_seq", Help: "The log sequence that this issuer has applied."},
			func() float64 { return float64(replica.Snapshot().Position.Seq) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sidekey_clock_off_seconds", Help: "How far this machine's clock is ahead of the other issuers' ticks; negative: behind."},
			func() float64 { return clockOff().Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sidekey_live_revocations", Help: "Revocations that matter still."},
			func() float64 { return float64(replica.Revocations()) }))
	return m
}

// outcome sorts the end of a login or refresh into the closed set of its label.
func outcome(err error) string {
	var busy *BusyError
	var denied *keyring.Denial
	var oauth *oauthError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &oauth):
		return "denied"
	case errors.As(err, &busy) && busy.Limited, errors.Is(err, ErrTooManySessions), errors.Is(err, ErrTooManyCredentials):
		return "limited"
	case errors.As(err, &busy):
		return "busy"
	case errors.As(err, &denied), errors.As(err, new(*CSRFError)), errors.Is(err, ErrCredentials), errors.Is(err, ErrNoAccount):
		return "denied"
	}
	return "unavailable"
}

// statusWriter remembers the status for the metrics.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find what lies below.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// count notes one answer. The route is a pattern of ours, never the path that a client sent.
func (m *metrics) count(route string, status int) {
	if route == "" {
		route = "none"
	}
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
}
