package issuer

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
)

// Duty tells whether this issuer is the one that does what one is enough for. *lease.Duty is one. It spares work and is no
// promise: what is done under it is safe where two issuers do it.
type Duty interface {
	Held() bool
	// While gives a context that ends with parent and as soon as the duty is not held; held is false where it is not.
	While(parent context.Context) (ctx context.Context, stop context.CancelFunc, held bool)
	Changed() <-chan struct{} // closed when this issuer takes the duty, or has it no more
	Holder() string           // the name of the issuer that has it; "": nobody, or it is not known
	Taken() int               // how often this process took it
}

// Fit tells whether this issuer could do what the Duty asks: it has read the log, and may sign and verify.
func (i *Issuer) Fit() bool { return i.Replica.Snapshot().Ready && i.fresh() }

// OnDuty tells whether this issuer has the Duty.
func (i *Issuer) OnDuty() bool { return i.Duty == nil || i.Duty.Held() }

// Holder gives the name of the issuer that has the Duty, as far as it is known here; "": nobody.
func (i *Issuer) Holder() string {
	if i.Duty == nil {
		return i.cfg.Name
	}
	return i.Duty.Holder()
}

// dutyChanged is closed when this issuer takes the Duty or has it no more.
func (i *Issuer) dutyChanged() <-chan struct{} {
	if i.Duty == nil {
		return nil
	}
	return i.Duty.Changed()
}

// whileOnDuty calls work each time that this issuer takes the Duty, with a context that ends with it, until ctx ends.
func (i *Issuer) whileOnDuty(ctx context.Context, work func(context.Context)) {
	if i.Duty == nil {
		work(ctx)
		return
	}
	for {
		changed := i.Duty.Changed()
		mine, stop, held := i.Duty.While(ctx)
		if held {
			work(mine)
			stop()
			if ctx.Err() != nil {
				return
			}
			continue
		}
		stop()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// registerDuty adds the Duty to the metrics.
func (i *Issuer) registerDuty() {
	i.Registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sidekey_duty", Help: "Whether this issuer does what one does for all: over all issuers the sum is 1."},
			func() float64 {
				if i.OnDuty() {
					return 1
				}
				return 0
			}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "sidekey_duty_taken_total", Help: "How often this issuer took over what one does for all."},
			func() float64 {
				if i.Duty == nil {
					return 0
				}
				return float64(i.Duty.Taken())
			}))
}

// onDuty is Duty.While.
func (i *Issuer) onDuty(ctx context.Context) (mine context.Context, stop context.CancelFunc, held bool) {
	if i.Duty == nil {
		mine, stop = context.WithCancel(ctx)
		return mine, stop, true
	}
	return i.Duty.While(ctx)
}
