package agent_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sidekey/sidekey/agent/attacktest"
)

// TestEnvoyAttacks tells the agent of each attack as Envoy does over gRPC, in both its forms. Each has the status and the reason
// that stand in the table, and what Envoy would send on after a yes is seen through the service's eyes.
func TestEnvoyAttacks(t *testing.T) {
	w, scene := besieged(t)
	e := w.envoy()
	all := attacktest.All()
	told, merged, unsaid := 0, 0, 0
	for i := range all {
		a := &all[i]
		if a.Raw != "" {
			continue // it means something to a proxy only
		}
		for _, raw := range []bool{false, true} {
			form, want := "a list, "+a.Name, *a
			if !raw {
				form = "a map, " + a.Name
			}
			req := attacktest.CheckRequest(a, scene, raw)
			if said := req.GetAttributes().GetRequest().GetHttp(); a.Unsaid == "" && said.GetPath()+said.GetHost() != scene.Path(a)+scene.Hostname(a) {
				t.Errorf("%s: Envoy cannot say it, and the table does not say why", form)
			}
			if !raw && a.Unsaid != "" {
				unsaid++
				continue
			}
			if !raw && a.Merged != "" {
				want.Status, want.Word = 401, a.Merged
				merged++
			}
			got := e.check(req)
			told++
			wantTold(t, form, got, want.Status, want.Word)
			if want.Status != 200 {
				continue
			}
			if why := attacktest.Granted(a, scene, got.GetOkResponse()); why != "" {
				t.Errorf("%s: the service would see it: %s", form, why)
			}
			if subject := got.fields["x-auth-subject"]; a.As != "" && !slices.Equal(subject, []string{a.As}) || a.As == "" && subject != nil {
				t.Errorf("%s: x-auth-subject is %q, want %q", form, subject, a.As)
			}
		}
	}
	if told < 350 || merged < 8 || unsaid != 1 {
		t.Errorf("%d were told, %d of them merged, %d cannot be", told, merged, unsaid)
	}
}

// TestEnvoyPseudoHeaders: what a pseudo-header says otherwise than the message is what the service gets.
func TestEnvoyPseudoHeaders(t *testing.T) {
	w, _ := besieged(t)
	e := w.envoy()
	for _, name := range []string{":path", ":authority", ":method"} {
		req := envoyAsks("GET app.example/static/x")
		wantTold(t, "the same", e.check(req), 200, "anonymous")
		req.Attributes.Request.Http.Headers[name] = "/admin/x"
		wantTold(t, name+" in the map", e.check(req), 403, "ambiguous_request")
		wantTold(t, name+" in the list", e.check(raw(proto.CloneOf(req))), 403, "ambiguous_request")
		wantTold(t, name+" twice", e.check(raw(envoyAsks("GET app.example/static/x"), name+": /admin/x")), 403, "ambiguous_request")
	}
}
