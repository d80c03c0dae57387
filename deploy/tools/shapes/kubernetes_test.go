package shapes

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "make deploy/kustomize/base anew from the chart")

const chartDir = "deploy/helm/wayleave"

// render is `helm template wayleave CHART --namespace wayleave -f VALUES`: each template's text by its name.
func render(t *testing.T, values map[string]any) (map[string]string, error) {
	t.Helper()
	chart, err := loader.Load(filepath.Join(root, chartDir))
	if err != nil {
		t.Fatal(err)
	}
	all, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "wayleave", Namespace: "wayleave", Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: true}.Render(chart, all)
}

func values(t *testing.T, path string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := yaml.UnmarshalStrict([]byte(read(t, path)), &v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v
}

// manifests are the documents of rendered templates, in order and without what is empty.
func manifests(files map[string]string) string {
	var docs []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		for doc := range strings.SplitSeq(files[name], "\n---\n") {
			if doc = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(doc), "---")); doc != "" {
				docs = append(docs, doc)
			}
		}
	}
	return strings.Join(docs, "\n---\n") + "\n"
}

// objects decodes manifests as an API server with strict validation does: no unknown or double field, no wrong type.
func objects(t *testing.T, what, text string) (all []runtime.Object) {
	t.Helper()
	known := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, monitoring.AddToScheme} {
		if err := add(known); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(known, serializer.EnableStrict).UniversalDeserializer()
	for doc := range strings.SplitSeq(text, "\n---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		object, _, err := decoder.Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Errorf("%s: %v\n%s", what, err, doc)
			continue
		}
		all = append(all, object)
	}
	return all
}

// of are the objects of one kind.
func of[T runtime.Object](all []runtime.Object) (found []T) {
	for _, o := range all {
		if o, is := o.(T); is {
			found = append(found, o)
		}
	}
	return found
}

// pod is the template of the one workload, and its selector.
func pod(t *testing.T, all []runtime.Object) (corev1.PodTemplateSpec, map[string]string) {
	t.Helper()
	for _, o := range all {
		switch o := o.(type) {
		case *appsv1.Deployment:
			return o.Spec.Template, o.Spec.Selector.MatchLabels
		case *appsv1.StatefulSet:
			template := o.Spec.Template
			for _, claim := range o.Spec.VolumeClaimTemplates {
				template.Spec.Volumes = append(template.Spec.Volumes, corev1.Volume{Name: claim.Name})
			}
			return template, o.Spec.Selector.MatchLabels
		case *appsv1.DaemonSet:
			return o.Spec.Template, o.Spec.Selector.MatchLabels
		}
	}
	t.Fatal("there is no workload")
	return corev1.PodTemplateSpec{}, nil
}

// checkObjects holds what is installed to what the product needs to be safe there.
func checkObjects(t *testing.T, what string, all []runtime.Object) {
	t.Helper()
	template, selector := pod(t, all)
	selected := func(by map[string]string) bool {
		return len(by) > 0 && labels.SelectorFromSet(by).Matches(labels.Set(template.Labels))
	}
	if !selected(selector) {
		t.Errorf("%s: the workload does not select its own pods", what)
	}
	for _, s := range of[*corev1.Service](all) {
		if !selected(s.Spec.Selector) {
			t.Errorf("%s: service %s selects other pods", what, s.Name)
		}
	}
	config := ""
	for _, c := range of[*corev1.ConfigMap](all) {
		if text, ok := c.Data["wayleave.yaml"]; ok {
			config = text
			checkConfig(t, what, text)
		}
	}
	if config == "" {
		t.Errorf("%s: no configuration", what)
	}

	spec := template.Spec
	volumes := map[string]bool{}
	for _, v := range spec.Volumes {
		volumes[v.Name] = true
	}
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		t.Errorf("%s: Envoy gets a token of Kubernetes", what)
	}
	for _, c := range append(slices.Clone(spec.InitContainers), spec.Containers...) {
		s := c.SecurityContext
		if s == nil || !*s.ReadOnlyRootFilesystem || !*s.RunAsNonRoot || *s.AllowPrivilegeEscalation || !slices.Contains(s.Capabilities.Drop, "ALL") || s.SeccompProfile == nil {
			t.Errorf("%s: container %s is not restricted", what, c.Name)
		}
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s: container %s mounts %s, which there is not", what, c.Name, m.Name)
			}
			if c.Name == "envoy" && (m.Name == "vault-token" || m.Name == "spool" || m.Name == "kubernetes-token") {
				t.Errorf("%s: Envoy has %s, which is for gates", what, m.Name)
			}
		}
		if c.Name != "envoy" && (c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways) {
			t.Errorf("%s: the gate %s is no sidecar, so it may end before Envoy", what, c.Name)
		}
		// What each is told to do is a command that there is.
		if out, err := output(t, wayleave, append([]string{c.Args[0], "--help"}, c.Args[1:]...)...); err != nil {
			t.Errorf("%s: container %s: %v\n%s", what, c.Name, err, out)
		}
	}

	// A worker's namespace leads to the gate and to names, and every policy is of what it says.
	for _, p := range of[*networkingv1.NetworkPolicy](all) {
		switch {
		case p.Namespace == "wayleave":
			if !selected(p.Spec.PodSelector.MatchLabels) {
				t.Errorf("%s: the policy %s is of other pods", what, p.Name)
			}
		default:
			if len(p.Spec.PolicyTypes) != 1 || p.Spec.PolicyTypes[0] != networkingv1.PolicyTypeEgress || len(p.Spec.Egress) != 2 {
				t.Errorf("%s: workers of %s have another way out: %+v", what, p.Namespace, p.Spec)
				continue
			}
			for i, rule := range p.Spec.Egress {
				if len(rule.To) != 1 || rule.To[0].NamespaceSelector == nil || rule.To[0].PodSelector == nil || len(rule.Ports) == 0 {
					t.Errorf("%s: rule %d of workers of %s is too wide: %+v", what, i, p.Namespace, rule)
				}
			}
			if !selected(p.Spec.Egress[0].To[0].PodSelector.MatchLabels) {
				t.Errorf("%s: workers of %s do not reach the gate", what, p.Namespace)
			}
		}
	}
}

func TestChart(t *testing.T) {
	cases, err := filepath.Glob(filepath.Join(root, chartDir, "ci/*-values.yaml"))
	if err != nil || len(cases) < 3 {
		t.Fatalf("%v, %v", cases, err)
	}
	for _, path := range cases {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			v := values(t, filepath.Join(chartDir, "ci", name))
			files, err := render(t, v)
			if err != nil {
				t.Fatal(err)
			}
			all := objects(t, name, manifests(files))
			checkObjects(t, name, all)

			template, _ := pod(t, all)
			gates := []string{}
			for _, c := range template.Spec.InitContainers {
				gates = append(gates, c.Name)
			}
			if name == "fleet-values.yaml" {
				if len(of[*monitoring.ServiceMonitor](all)) != 1 || len(of[*rbacv1.ClusterRoleBinding](all)) != 1 || len(of[*appsv1.StatefulSet](all)) != 1 {
					t.Errorf("something is missing: %v", manifests(files))
				}
				if policies := of[*networkingv1.NetworkPolicy](all); len(policies) != 3 {
					t.Errorf("%d policies, and there are two namespaces of workers", len(policies))
				}
			}
			if name == "nodes-values.yaml" && (len(of[*appsv1.DaemonSet](all)) != 1 || !slices.Equal(gates, []string{"gate-one"})) {
				t.Errorf("no DaemonSet with one gate: %v", gates)
			}
			for _, m := range lint.RunAll(filepath.Join(root, chartDir), v, "wayleave").Messages {
				if m.Severity > support.InfoSev {
					t.Errorf("helm lint: %v", m)
				}
			}
		})
	}
}

// What values must not be is said before anything is installed, in words that help.
func TestChartRefuses(t *testing.T) {
	set := func(path string, value any) map[string]any {
		v := values(t, chartDir+"/ci/least-values.yaml")
		at := v
		keys := strings.Split(path, ".")
		for _, key := range keys[:len(keys)-1] {
			if at[key] == nil {
				at[key] = map[string]any{}
			}
			at = at[key].(map[string]any)
		}
		at[keys[len(keys)-1]] = value
		return v
	}
	for _, c := range []struct {
		path  string
		value any
		want  string
	}{
		{"image.repository", "", "image.repository: name the image"},
		{"vault.address", "", "vault.address: where is Vault"},
		{"vault.address", "http://vault.internal:8200", "pattern"},
		{"gates", []any{}, "minItems"},
		{"kind", "Job", "kind"},
		{"worker.namespaces", []any{"agents"}, "worker"},
		{"workers.ca", "ca.pem", "pattern"},
		{"proxy.port", 80, "1,024"},
	} {
		if _, err := render(t, set(c.path, c.value)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s = %v: %v; want %q", c.path, c.value, err, c.want)
		}
	}
}

// Pods are replaced when what is a gate's own changes, and not when what all gates share does: they take that up by themselves.
func TestChartRestartsForItsOwnAlone(t *testing.T) {
	own := func(change func(config map[string]any)) string {
		v := values(t, chartDir+"/ci/least-values.yaml")
		change(v["config"].(map[string]any))
		files, err := render(t, v)
		if err != nil {
			t.Fatal(err)
		}
		template, _ := pod(t, objects(t, "least", manifests(files)))
		return template.Annotations["wayleave/own"]
	}
	was := own(func(map[string]any) {})
	if own(func(c map[string]any) { c["tunnel"] = []any{"pypi.org"} }) != was {
		t.Error("a tunnel more replaces pods")
	}
	if own(func(c map[string]any) { c["audit"] = map[string]any{"file": "/var/lib/wayleave/audit.jsonl"} }) == was {
		t.Error("another place of the audit does not replace pods")
	}
}

func TestKustomize(t *testing.T) {
	files, err := render(t, values(t, "deploy/kustomize/values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	base := "# Made from the chart with values.yaml; do not edit.\n" + strings.ReplaceAll(manifests(files), "managed-by: Helm", "managed-by: kustomize")
	path := filepath.Join(root, "deploy/kustomize/base/wayleave.yaml")
	if *update {
		if err := os.WriteFile(path, []byte(base), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, "deploy/kustomize/base/wayleave.yaml") != base {
		t.Error("deploy/kustomize/base is not what the chart says; run 'go test ./... -update' in deploy/tools/shapes")
	}
	for _, dir := range []string{"base", "example"} {
		made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(root, "deploy/kustomize", dir))
		if err != nil {
			t.Fatal(err)
		}
		text, err := made.AsYaml()
		if err != nil {
			t.Fatal(err)
		}
		all := objects(t, dir, strings.TrimSpace(string(text)))
		checkObjects(t, "kustomize/"+dir, all)
		if template, _ := pod(t, all); dir == "example" && template.Spec.Containers[0].Image != "registry.example.com/wayleave-envoy:1.2.3" {
			t.Errorf("the overlay has the image %s", template.Spec.Containers[0].Image)
		}
	}
}

// The worker that is shown fits the chart's values that are shown: its label, its ConfigMaps, and what its token is for.
func TestWorkerInKubernetes(t *testing.T) {
	shown := read(t, "deploy/helm/worker.yaml")
	all := objects(t, "worker.yaml", shown)
	jobs, accounts := of[*batchv1.Job](all), of[*corev1.ServiceAccount](all)
	if len(jobs) != 1 || len(accounts) != 1 {
		t.Fatalf("%d jobs, %d accounts", len(jobs), len(accounts))
	}
	files, err := render(t, values(t, chartDir+"/ci/fleet-values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	maps, config := map[string]map[string]string{}, ""
	for _, c := range of[*corev1.ConfigMap](objects(t, "chart", manifests(files))) {
		if c.Namespace == jobs[0].Namespace {
			maps[c.Name] = c.Data
		}
		config += c.Data["wayleave.yaml"]
	}
	for _, p := range of[*networkingv1.NetworkPolicy](objects(t, "chart", manifests(files))) {
		if p.Namespace == jobs[0].Namespace && !labels.SelectorFromSet(p.Spec.PodSelector.MatchLabels).Matches(labels.Set(jobs[0].Spec.Template.Labels)) {
			t.Errorf("the policy %s is not of the worker's pods", p.Name)
		}
	}
	spec := jobs[0].Spec.Template.Spec
	env := maps[spec.Containers[0].EnvFrom[0].ConfigMapRef.Name]
	mount := spec.Containers[0].VolumeMounts[0].MountPath
	for _, source := range spec.Volumes[0].Projected.Sources {
		switch {
		case source.ServiceAccountToken != nil:
			if token := source.ServiceAccountToken; token.Audience != env["WAYLEAVE_GATE"] || mount+"/"+token.Path != env["WAYLEAVE_TOKEN_FILE"] {
				t.Errorf("the token %+v is not what %v says", token, env)
			}
		case source.ConfigMap != nil:
			if data := maps[source.ConfigMap.Name]; data["ca.pem"] == "" || mount+"/ca.pem" != env["WAYLEAVE_GATE_CA"] {
				t.Errorf("no CA at %s: %v", env["WAYLEAVE_GATE_CA"], data)
			}
		}
	}
	if subject := "system:serviceaccount:" + jobs[0].Namespace + ":" + accounts[0].Name; spec.ServiceAccountName != accounts[0].Name || !strings.Contains(config, "subject: "+subject) {
		t.Errorf("no worker of the configuration is %s", subject)
	}
	if !strings.Contains(config, "audience: "+env["WAYLEAVE_GATE"]) {
		t.Errorf("the gate takes no token for %s", env["WAYLEAVE_GATE"])
	}
}
