package shapes

import (
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

// A workload that had a provider's real key has the placeholder and no key when it is patched, and all else as it was.
func TestWorkloadsArePatched(t *testing.T) {
	const workload = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: agent}
spec:
  template:
    spec:
      volumes: [{name: work, emptyDir: {}}]
      containers:
      - name: main
        envFrom: [{configMapRef: {name: settings}}]
        env:
        - {name: ANTHROPIC_API_KEY, valueFrom: {secretKeyRef: {name: real, key: key}}}
        - {name: HTTPS_PROXY, value: "http://corp:8080"}
        - {name: ODD, valueFrom: {configMapKeyRef: {name: settings, key: odd}}}
        - {name: KEPT, value: "yes"}
        volumeMounts: [{name: work, mountPath: /work}]
      - name: side
      - name: other
        env: [{name: HTTPS_PROXY, value: "http://corp:8080"}]
`
	before, err := yaml.YAMLToJSON([]byte(workload))
	if err != nil {
		t.Fatal(err)
	}
	out, err := strategicpatch.StrategicMergePatch(before, []byte(read(t, "cmd/wayleave/testdata/kubernetes-patch.json")), appsv1.Deployment{})
	if err != nil {
		t.Fatal(err)
	}
	var patched appsv1.Deployment
	if err := yaml.UnmarshalStrict(out, &patched); err != nil {
		t.Fatal(err)
	}
	pod := patched.Spec.Template.Spec
	named := func(name string) corev1.Container {
		return pod.Containers[slices.IndexFunc(pod.Containers, func(c corev1.Container) bool { return c.Name == name })]
	}
	main := named("main")
	env := map[string]corev1.EnvVar{}
	for _, v := range main.Env {
		env[v.Name] = v
	}
	for _, name := range []string{"HTTPS_PROXY", "JAVA_TOOL_OPTIONS", "ODD"} {
		v := env[name]
		if v.Value != "" || v.ValueFrom == nil || v.ValueFrom.ConfigMapKeyRef != nil || v.ValueFrom.SecretKeyRef == nil || v.ValueFrom.SecretKeyRef.Name != "agents" || v.ValueFrom.SecretKeyRef.Key != name {
			t.Errorf("%s is %+v", name, v)
		}
	}
	if _, has := env["ANTHROPIC_API_KEY"]; has || env["KEPT"].Value != "yes" || len(env) != 4 {
		t.Errorf("its variables are %+v", main.Env)
	}
	if len(main.EnvFrom) != 1 || len(main.VolumeMounts) != 2 || len(pod.Volumes) != 2 {
		t.Errorf("what it had is %+v, %+v, %+v", main.EnvFrom, main.VolumeMounts, pod.Volumes)
	}
	if side := named("side"); len(side.Env) != 3 || side.Env[0].ValueFrom == nil || side.Env[0].ValueFrom.SecretKeyRef == nil {
		t.Errorf("a container without an environment has %+v", side.Env)
	}
	if other := named("other"); len(other.Env) != 1 || other.Env[0].Value != "http://corp:8080" || len(other.VolumeMounts) != 0 {
		t.Errorf("another container was changed: %+v", other)
	}
}
