//go:build linux

package faults

import (
	"math/rand/v2"
	"sync"
	"time"
)

// familyClient uses one family of refresh tokens after another, as clients do and as thieves do.
type familyClient struct {
	*workload
	user string

	now, before token // the newest refresh token, and the one it was given for
	uses        int
}

// longestFamily bounds a family: the longer, the dearer is it to check.
const longestFamily = 40

func (f *familyClient) step(rng *rand.Rand) {
	if f.now.text == "" || f.uses > longestFamily {
		f.uses = 0
		if p, ok := f.login(f.anyIssuer(rng), f.user); ok {
			f.now, f.before = p.refresh, token{}
		}
		return
	}
	f.uses++
	switch n := rng.IntN(40); {
	case n < 18: // the current one
		f.present(rng, f.now, 1)
	case n < 22: // each as soon as it is there, wherever that is: others may not have heard of it yet
		for range 4 {
			if f.now.text != "" {
				f.present(rng, f.now, 1)
				f.uses++
			}
		}
	case n < 32: // several tabs at once
		f.present(rng, f.now, 2+rng.IntN(3))
	case n < 36 && f.before.text != "": // the answer was lost, or so the client thinks
		f.present(rng, f.before, 1+rng.IntN(2))
	case n == 36 && f.before.text != "": // a thief, or a client that slept
		time.Sleep(f.grace + 4*graceSlack)
		f.present(rng, f.before, 1)
	case n == 37:
		f.revoke(f.anyIssuer(rng), f.now, "sid")
		f.present(rng, f.now, 1)
	default:
		f.present(rng, f.now, 1)
	}
}

// present presents a token so many times at once and takes over what comes back.
func (f *familyClient) present(rng *rand.Rand, t token, times int) {
	nodes := make([]*node, times)
	for n := range nodes {
		nodes[n] = f.anyIssuer(rng)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			p, o := f.refresh(n, t)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case o.Out != "" && o.OutGen > f.now.Gen && f.now.text != "":
				f.before, f.now = t, p.refresh
			case o.Status == 401:
				f.now, f.before = token{}, token{} // the family has ended
			}
		})
	}
	wg.Wait()
}
