// Package schema holds deploy/helm/sidekey against Helm and the Kubernetes API, and deploy/container/Dockerfile against BuildKit: the
// chart is rendered with Helm's own library, each object decoded strictly into its type, judged by Kubernetes' own Pod Security
// Standards, and its configuration read by a sidekey built here. No cluster was at hand: nothing was ever scheduled.
package schema

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

const chartDir = "../sidekey"

// external are values for an existing NATS and three issuers.
const external = `
issuer: {replicas: 3, url: "https://id.test", tlsSecret: t, masterKeySecret: m, busCASecret: b, config: "[keys]\nalg = \"ES256\"\n"}
bus: {urls: ["tls://nats.test:4222"], monitorURL: "http://nats.test:8222"}
image: {repository: registry.test/sidekey, digest: "sha256:` + "0000000000000000000000000000000000000000000000000000000000000000" + `"}
networkPolicy: {publicFrom: [{podSelector: {}}], metricsFrom: [{namespaceSelector: {matchLabels: {a: b}}}]}
`

// clustered are values for three issuers and nothing else.
const clustered = `issuer: {replicas: 3, url: "https://id.test", tlsSecret: t}`

var sets = map[string]string{"default": "", "clustered": clustered, "external": external, "without agents": "agent: {enabled: false}", "without policies": "networkPolicy: {enabled: false}", "monitored": monitored}

// monitored are values for a Prometheus operator's Prometheus.
const monitored = `
serviceMonitor: {enabled: true}
networkPolicy: {metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]}
`

// render gives the documents of the chart with these values.
func render(t *testing.T, values string) ([]string, error) {
	t.Helper()
	chart, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	chart.Templates = append(chart.Templates, &common.File{Name: "templates/sidecar_test.yaml", Data: []byte(sidecarPod)})
	given, err := common.ReadValues([]byte(values))
	if err != nil {
		t.Fatal(err)
	}
	all, err := util.ToRenderValues(chart, given, common.ReleaseOptions{Name: "sk", Namespace: "auth", IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(chart, all)
	if err != nil {
		return nil, err
	}
	var docs []string
	for name, text := range files {
		if strings.HasSuffix(name, ".tpl") {
			continue
		}
		for doc := range strings.SplitSeq(text, "\n---\n") {
			if strings.TrimSpace(doc) != "" {
				docs = append(docs, doc)
			}
		}
	}
	return docs, nil
}

const sidecarPod = `
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  securityContext: {runAsUser: 1000, runAsNonRoot: true, fsGroup: 65532, fsGroupChangePolicy: OnRootMismatch, seccompProfile: {type: RuntimeDefault}}
  initContainers: {{- include "sidekey.agentSidecar" (dict "root" .) | nindent 4 }}
  containers:
    - name: app
      image: app
      securityContext: {{- include "sidekey.containerSecurity" . | nindent 8 }}
  volumes:
    - {name: sidekey-state, persistentVolumeClaim: {claimName: app}}
    - {name: sidekey-runtime, emptyDir: {medium: Memory}}
    - {name: sidekey-join, secret: {secretName: app-join, optional: true}}
`

// objects are what a chart made, by kind and name.
type objects map[string]any

func decode(t *testing.T, docs []string) objects {
	t.Helper()
	all := objects{}
	for _, doc := range docs {
		var head struct {
			APIVersion string                `json:"apiVersion"`
			Kind       string                `json:"kind"`
			Metadata   struct{ Name string } `json:"metadata"`
		}
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		var o any
		switch head.APIVersion + " " + head.Kind {
		case "apps/v1 StatefulSet":
			o = new(apps.StatefulSet)
		case "apps/v1 DaemonSet":
			o = new(apps.DaemonSet)
		case "v1 Service":
			o = new(core.Service)
		case "v1 ConfigMap":
			o = new(core.ConfigMap)
		case "v1 Pod":
			o = new(core.Pod)
		case "policy/v1 PodDisruptionBudget":
			o = new(policyv1.PodDisruptionBudget)
		case "networking.k8s.io/v1 NetworkPolicy":
			o = new(networking.NetworkPolicy)
		case "monitoring.coreos.com/v1 ServiceMonitor":
			o = new(monitoring.ServiceMonitor)
		case "monitoring.coreos.com/v1 PodMonitor":
			o = new(monitoring.PodMonitor)
		default:
			t.Fatalf("an object of the kind %s %s", head.APIVersion, head.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			t.Errorf("%s %s: %v\n%s", head.Kind, head.Metadata.Name, err, doc)
		}
		all[head.Kind+" "+head.Metadata.Name] = o
	}
	return all
}

// TestChart renders the chart with several sets of values.
func TestChart(t *testing.T) {
	for name, values := range sets {
		t.Run(name, func(t *testing.T) {
			docs, err := render(t, values)
			if err != nil {
				t.Fatal(err)
			}
			all := decode(t, docs)
			set := all["StatefulSet sk-issuer"].(*apps.StatefulSet)
			judge(t, "issuer", set.Spec.Template.ObjectMeta.Labels, &set.Spec.Template.Spec)
			pod := all["Pod app"].(*core.Pod)
			judge(t, "sidecar", nil, &pod.Spec)
			if side := pod.Spec.InitContainers[0]; side.RestartPolicy == nil || *side.RestartPolicy != core.ContainerRestartPolicyAlways || side.StartupProbe.HTTPGet.Path != "/readyz" {
				t.Errorf("the sidecar is none, or its pod does not wait for it: %+v", side)
			} else if sc := side.SecurityContext; sc.RunAsUser == nil || *sc.RunAsUser != 65532 || sc.RunAsGroup == nil || *sc.RunAsGroup != 65532 {
				t.Errorf("the sidecar runs as whoever its pod does: %+v", sc)
			}
			if d, ok := all["DaemonSet sk-agent"].(*apps.DaemonSet); ok {
				judge(t, "agent", d.Spec.Template.ObjectMeta.Labels, &d.Spec.Template.Spec, "hostPath volumes")
			}
			for _, container := range []core.Container{set.Spec.Template.Spec.Containers[0]} {
				if container.LivenessProbe.HTTPGet.Path != "/healthz" || container.ReadinessProbe.HTTPGet.Path != "/readyz" || container.Resources.Limits.Memory().IsZero() {
					t.Errorf("probes or limits are not as they must be: %+v", container)
				}
			}
			for kind, o := range all {
				s, ok := o.(*core.Service)
				if !ok {
					continue
				}
				for _, p := range s.Spec.Ports {
					if p.TargetPort.StrVal == "ops" && s.Spec.ClusterIP != core.ClusterIPNone || s.Spec.Type == core.ServiceTypeLoadBalancer {
						t.Errorf("%s opens %s", kind, p.Name)
					}
				}
			}
			config := all["ConfigMap sk-config"].(*core.ConfigMap)
			for file, text := range config.Data {
				checkConfig(t, file, text)
			}
			for _, doc := range docs {
				for _, secret := range []string{"kind: Secret", "sidekey-join-1:", "PRIVATE KEY", "SIDEKEY_TOKEN"} {
					if strings.Contains(doc, secret) {
						t.Errorf("%q stands in\n%s", secret, doc)
					}
				}
			}
		})
	}
}

// TestChartCluster: three issuers are one cluster, each reached under its own name, and only the first may found it.
func TestChartCluster(t *testing.T) {
	docs, err := render(t, clustered)
	if err != nil {
		t.Fatal(err)
	}
	all := decode(t, docs)
	set := all["StatefulSet sk-issuer"].(*apps.StatefulSet)
	if set.Spec.PodManagementPolicy != apps.ParallelPodManagement || set.Spec.ServiceName != "sk-issuers" {
		t.Errorf("the pods do not start side by side under names of their own: %s, %s", set.Spec.PodManagementPolicy, set.Spec.ServiceName)
	}
	got := map[string]string{}
	for _, v := range set.Spec.Template.Spec.Containers[0].Env {
		got[v.Name] = v.Value
	}
	for name, want := range map[string]string{
		"SIDEKEY_BUS_ADVERTISE":         "tls://$(POD_NAME).sk-issuers.auth.svc:7463",
		"SIDEKEY_BUS_CLUSTER_ADVERTISE": "$(POD_NAME).sk-issuers.auth.svc:7464",
	} {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
	config := all["ConfigMap sk-config"].(*core.ConfigMap).Data["issuer.toml"]
	if !strings.Contains(config, `founder = "sk-issuer-0"`) || strings.Contains(config, "advertise") {
		t.Errorf("anybody may found it, or all are reached under one name:\n%s", config)
	}
	routes := all["NetworkPolicy sk-issuer"].(*networking.NetworkPolicy).Spec.Ingress
	for _, rule := range routes {
		if rule.Ports[0].Port.StrVal == "routes" && len(rule.From) != 1 {
			t.Errorf("the routes are open to others: %+v", rule)
		}
	}
	if !slices.ContainsFunc(routes, func(r networking.NetworkPolicyIngressRule) bool { return r.Ports[0].Port.StrVal == "routes" }) {
		t.Error("no policy lets the issuers reach each other")
	}
}

// TestChartMonitors: a Prometheus finds issuers and agents, at a port that they have, and the policies let it in where it is named.
func TestChartMonitors(t *testing.T) {
	docs, err := render(t, monitored)
	if err != nil {
		t.Fatal(err)
	}
	all := decode(t, docs)
	set, agents := all["StatefulSet sk-issuer"].(*apps.StatefulSet), all["DaemonSet sk-agent"].(*apps.DaemonSet)
	pods, ok := all["PodMonitor sk-agents"].(*monitoring.PodMonitor)
	if !ok {
		t.Fatal("nobody scrapes the agents, so none of their alerts fires")
	}
	if got, want := fmt.Sprint(pods.Spec.Selector.MatchLabels), fmt.Sprint(agents.Spec.Template.Labels); got != want {
		t.Errorf("the PodMonitor selects %s, and the agents are %s", got, want)
	}
	if end := pods.Spec.PodMetricsEndpoints[0]; end.Path != "/metrics" || *end.Port != agents.Spec.Template.Spec.Containers[0].Ports[0].Name {
		t.Errorf("the PodMonitor scrapes %+v, and the agent has %+v", end, agents.Spec.Template.Spec.Containers[0].Ports)
	}
	services := all["ServiceMonitor sk-issuers"].(*monitoring.ServiceMonitor)
	headless := all["Service sk-issuers"].(*core.Service)
	if got, want := fmt.Sprint(services.Spec.Selector.MatchLabels), fmt.Sprint(headless.Labels); got != want {
		t.Errorf("the ServiceMonitor selects %s, and the Service is %s", got, want)
	}
	if got, want := fmt.Sprint(headless.Spec.Selector), fmt.Sprint(set.Spec.Template.Labels); got != want || services.Spec.Endpoints[0].Port != headless.Spec.Ports[0].Name {
		t.Errorf("the Service selects %s, and the issuers are %s; it has %+v, and %s is scraped", got, want, headless.Spec.Ports, services.Spec.Endpoints[0].Port)
	}
	for _, name := range []string{"sk-issuer", "sk-agent"} {
		rules := all["NetworkPolicy "+name].(*networking.NetworkPolicy).Spec.Ingress
		if !slices.ContainsFunc(rules, func(r networking.NetworkPolicyIngressRule) bool {
			return r.Ports[0].Port.StrVal == "ops" && len(r.From) == 1
		}) {
			t.Errorf("%s: Prometheus is kept out: %+v", name, rules)
		}
	}
}

// TestChartStartsAnewWhoReadsIt: a change of one configuration changes the pods that read it, and no others.
func TestChartStartsAnewWhoReadsIt(t *testing.T) {
	sums := func(values string) (issuer, agent string) {
		docs, err := render(t, values)
		if err != nil {
			t.Fatal(err)
		}
		all := decode(t, docs)
		return all["StatefulSet sk-issuer"].(*apps.StatefulSet).Spec.Template.Annotations["checksum/config"], all["DaemonSet sk-agent"].(*apps.DaemonSet).Spec.Template.Annotations["checksum/config"]
	}
	issuer, agent := sums("")
	if i, a := sums("agent: {maxStaleness: 5m}"); i != issuer || a == agent {
		t.Errorf("the agents' file changed: issuers start anew %v, agents %v", i != issuer, a != agent)
	}
	if i, a := sums(`issuer: {url: "https://other.test"}`); i == issuer || a != agent {
		t.Errorf("the issuers' file changed: issuers start anew %v, agents %v", i != issuer, a != agent)
	}
}

// judge holds a pod to the restricted Pod Security Standard, but for what is named.
func judge(t *testing.T, name string, labels map[string]string, spec *core.PodSpec, but ...string) {
	t.Helper()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	meta := &core.Pod{}
	meta.Labels = labels
	for _, r := range evaluator.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &meta.ObjectMeta, spec) {
		if !r.Allowed && !slices.Contains(but, r.ForbiddenReason) && !(len(but) > 0 && r.ForbiddenReason == "restricted volume types") {
			t.Errorf("%s: %s: %s", name, r.ForbiddenReason, r.ForbiddenDetail)
		}
	}
	if name != "sidecar" && (spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken || spec.EnableServiceLinks == nil || *spec.EnableServiceLinks) {
		t.Errorf("%s has the cluster's token, or variables of its services", name)
	}
	for _, c := range append(spec.InitContainers, spec.Containers...) {
		if c.Name != "app" && (c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem) {
			t.Errorf("%s: %s may write its image", name, c.Name)
		}
	}
}

// checkConfig has sidekey itself read a rendered configuration.
func checkConfig(t *testing.T, file, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), file)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary(t), "config", "check", "--config", path).CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s\n%s", file, err, out, text)
	}
}

// TestChartRefuses holds the schema of the values to what it is for.
func TestChartRefuses(t *testing.T) {
	for values, want := range map[string]string{
		"issuer: {replicas: 2}":                           "urls",
		"issuer: {url: \"http://id.test\"}":               "url",
		"issuer: {masterKey: abc}":                        "masterKey",
		"bus: {urls: [\"nats://u:p@nats.test\"]}":         "urls",
		"image: {repository: x, digest: \"sha256:beef\"}": "digest",
	} {
		if _, err := render(t, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want a refusal that names %q", values, err, want)
		}
	}
}

// TestDockerfile reads the Dockerfile with BuildKit's parser.
func TestDockerfile(t *testing.T) {
	f, err := os.Open("../../container/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read, err := parser.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	stages, _, err := instructions.Parse(read.AST, nil)
	if err != nil || len(stages) != 2 || len(read.Warnings) != 0 {
		t.Fatalf("got %d stages, %v, %v, want two", len(stages), read.Warnings, err)
	}
	var user, entry bool
	for _, c := range stages[1].Commands {
		switch c := c.(type) {
		case *instructions.RunCommand:
			t.Errorf("the image has no shell to run %v", c)
		case *instructions.UserCommand:
			user = c.User == "65532:65532"
		case *instructions.EntrypointCommand:
			entry = !c.PrependShell
		}
	}
	if !user || !entry {
		t.Error("the last stage is root, or starts a shell")
	}
}
