{{- define "wayleave.name" -}}
{{- if contains "wayleave" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-wayleave" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "wayleave.selector" -}}
app.kubernetes.io/name: wayleave
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "wayleave.labels" -}}
{{ include "wayleave.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "wayleave.account" -}}
{{ .Values.serviceAccount.name | default (include "wayleave.name" .) }}
{{- end }}

{{- /* An image: dict "image" its values, "what" its key, "root" the top. */}}
{{- define "wayleave.image" -}}
{{- $repository := required (printf "%s.repository: name the image in your registry; `make images` builds it" .what) .image.repository }}
{{- $tag := .image.tag | default .root.Chart.AppVersion }}
{{- if hasPrefix "sha256:" $tag }}{{ printf "%s@%s" $repository $tag }}{{ else }}{{ printf "%s:%s" $repository $tag }}{{ end }}
{{- end }}

{{- /* Where workers connect, as wayleave run wants it. */}}
{{- define "wayleave.gate" -}}
{{- $host := printf "%s.%s.svc" (include "wayleave.name" .) .Release.Namespace }}
{{- if .Values.proxy.tls.enabled }}{{ printf "https://%s:%d" (first (append .Values.proxy.tls.names $host)) (int .Values.proxy.tls.port) }}
{{- else }}{{ printf "http://%s:%d" $host (int .Values.proxy.port) }}{{ end }}
{{- end }}

{{- /* The configuration: what the chart knows, and over it what config has. */}}
{{- define "wayleave.config" -}}
{{- $listen := dict "proxy" (printf "0.0.0.0:%d" (int .Values.proxy.port)) "replicas" .Values.gates }}
{{- if .Values.proxy.tls.enabled }}
{{- $_ := set $listen "proxy_tls" (printf "0.0.0.0:%d" (int .Values.proxy.tls.port)) }}
{{- $_ := set $listen "tls_names" (.Values.proxy.tls.names | default (list (printf "%s.%s.svc" (include "wayleave.name" .) .Release.Namespace))) }}
{{- end }}
{{- $auth := dict "method" "kubernetes" "mount" .Values.vault.mount "role" .Values.vault.role "jwt_file" "/var/run/secrets/vault/token" }}
{{- $own := get .Values.config "vault" | default dict }}
{{- $vault := dict "auth" $auth "address" (get $own "address" | default .Values.vault.address | required "vault.address: where is Vault or OpenBao?") }}
{{- with .Values.vault.namespace }}{{ $_ := set $vault "namespace" . }}{{ end }}
{{- if .Values.vault.caConfigMap }}{{ $_ := set $vault "ca_file" "/etc/wayleave-vault/ca.pem" }}{{ end }}
{{- if hasKey $own "auth" }}{{ $_ := unset $vault "auth" }}{{ end }}
{{- $metrics := dict "listen" (printf "0.0.0.0:%d" (int .Values.metrics.port)) "allow_remote" true }}
{{- mustMergeOverwrite (dict "vault" $vault "listen" $listen "metrics" $metrics) (deepCopy .Values.config) | toYaml }}
{{- end }}

{{- define "wayleave.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "wayleave.pod" -}}
metadata:
  annotations:
    # What is not shared by all gates takes effect with a start; gates see the rest of a changed file by themselves.
    wayleave/own: {{ omit (include "wayleave.config" . | fromYaml) "log" "rollout" "upstream" "providers" "grants" "routes" "tunnel" "plain" "deny" "profiles" "issuers" "workers" | toYaml | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "wayleave.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "wayleave.account" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  # Envoy's moment and its ten seconds, then for each gate, one after the other, 25 and what a provider and Vault may take for a last refresh.
  terminationGracePeriodSeconds: {{ add 30 (mul 120 (len .Values.gates)) }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  # Gates are sidecars: they are ready before Envoy starts, and end after it.
  initContainers:
    {{- $top := . }}
    {{- range $i, $gate := .Values.gates }}
    - name: gate-{{ $gate }}
      image: {{ include "wayleave.image" (dict "image" $top.Values.image "what" "image" "root" $top) }}
      imagePullPolicy: {{ $top.Values.image.pullPolicy }}
      restartPolicy: Always
      args: [serve, -c, /etc/wayleave/wayleave.yaml, --run-dir, /run/wayleave/gate, --spool-dir, /var/lib/wayleave/spool-{{ $gate }}, --replica, {{ $gate | quote }}]
      env:
        - name: GOMEMLIMIT
          valueFrom: {resourceFieldRef: {resource: limits.memory}}
      ports:
        - {name: metrics-{{ $gate }}, containerPort: {{ add (int $top.Values.metrics.port) $i }}}
      # Paces updates. Not a readiness probe: without Vault a gate goes on with the tokens that it has.
      startupProbe:
        httpGet: {path: /readyz, port: metrics-{{ $gate }}}
        periodSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /livez, port: metrics-{{ $gate }}}
        timeoutSeconds: 5
      securityContext: {{- include "wayleave.restricted" $top | nindent 8 }}
      resources: {{- toYaml $top.Values.resources.gate | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/wayleave, readOnly: true}
        - {name: run, mountPath: /run/wayleave}
        - {name: spool, mountPath: /var/lib/wayleave}
        - {name: tmp, mountPath: /tmp}
        - {name: vault-token, mountPath: /var/run/secrets/vault, readOnly: true}
        {{- if $top.Values.vault.caConfigMap }}
        - {name: vault-ca, mountPath: /etc/wayleave-vault, readOnly: true}
        {{- end }}
        {{- if $top.Values.tokenReview }}
        - {name: kubernetes-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
        {{- end }}
        {{- range $top.Values.secrets }}
        - {name: secret-{{ . }}, mountPath: /etc/wayleave-secrets/{{ . }}, readOnly: true}
        {{- end }}
    {{- end }}
  containers:
    - name: envoy
      image: {{ include "wayleave.image" (dict "image" .Values.envoyImage "what" "envoyImage" "root" .) }}
      imagePullPolicy: {{ .Values.envoyImage.pullPolicy }}
      args: [envoy, -c, /etc/wayleave/wayleave.yaml, --run-dir, /run/wayleave/gate]
      ports:
        - {name: proxy, containerPort: {{ .Values.proxy.port }}}
        {{- if .Values.proxy.tls.enabled }}
        - {name: proxy-tls, containerPort: {{ .Values.proxy.tls.port }}}
        {{- end }}
      readinessProbe:
        tcpSocket: {port: proxy}
        periodSeconds: 5
      lifecycle:
        preStop: {sleep: {seconds: 10}} # until no worker is sent here any longer
      securityContext: {{- include "wayleave.restricted" . | nindent 8 }}
      resources: {{- toYaml .Values.resources.envoy | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/wayleave, readOnly: true}
        - {name: run, mountPath: /run/wayleave}
        - {name: tmp, mountPath: /tmp}
        {{- range .Values.secrets }}
        - {name: secret-{{ . }}, mountPath: /etc/wayleave-secrets/{{ . }}, readOnly: true}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "wayleave.name" . }}}
    - name: run
      emptyDir: {medium: Memory, sizeLimit: 64Mi}
    - name: tmp
      emptyDir: {sizeLimit: 64Mi}
    {{- if ne .Values.kind "StatefulSet" }}
    - name: spool
      emptyDir: {sizeLimit: {{ .Values.spool.size }}}
    {{- end }}
    - name: vault-token
      projected:
        defaultMode: 0440
        sources:
          - serviceAccountToken: {path: token, audience: {{ .Values.vault.audience | quote }}, expirationSeconds: 3600}
    {{- with .Values.vault.caConfigMap }}
    - name: vault-ca
      configMap: {name: {{ . }}}
    {{- end }}
    {{- if .Values.tokenReview }}
    - name: kubernetes-token
      projected:
        defaultMode: 0440
        sources:
          - serviceAccountToken: {path: token, expirationSeconds: 3600}
          - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
    {{- end }}
    {{- range .Values.secrets }}
    - name: secret-{{ . }}
      secret: {secretName: {{ . }}, defaultMode: 0440}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- if ne .Values.kind "DaemonSet" }}
  topologySpreadConstraints:
    {{- with .Values.topologySpreadConstraints }}
    {{- toYaml . | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "wayleave.selector" . | nindent 10 }}
    {{- end }}
  {{- end }}
{{- end }}
