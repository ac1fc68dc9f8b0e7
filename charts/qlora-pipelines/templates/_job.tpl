{{/*
The pod of a job: `qlora ARGS` with a step's addresses, and no secret that it does not need.
Of (dict "root" CONTEXT "component" NAME "args" LIST "needs" LIST), with "config" CONFIGMAP for one that reads a run's YAML, or
"command" LIST for another program. Needs are: kfp (address and token), pipeline (compiled for this cluster), store, mlflow, hub,
mlflow-admin (the administrator's login, and that of the runs by other names).
*/}}
{{- define "qlora.jobPod" -}}
{{- $root := .root -}}
metadata:
  labels: {{- include "qlora.podLabels" (list $root .component) | nindent 4 }}
  {{- with $root.Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec: {{- include "qlora.jobPodSpec" . | nindent 2 }}
{{- end }}

{{- define "qlora.jobPodSpec" -}}
{{- $root := .root -}}
{{- $kfp := has "kfp" .needs -}}
{{- $ca := and $kfp $root.Values.kfp.caConfigMap -}}
{{- $compile := list -}}
{{- if has "pipeline" .needs -}}
{{- with $root.Values.pipeline.disk }}{{ $compile = concat $compile (list "--disk" .) }}{{ end -}}
{{- range $key, $value := $root.Values.podLabels }}{{ $compile = concat $compile (list "--pod-label" $key $value) }}{{ end -}}
{{- if $root.Values.modelCache.enabled }}{{ $compile = concat $compile (list "--cache-pvc" $root.Values.modelCache.name) }}{{ end -}}
{{- end -}}
{{- $args := .args -}}
{{- if $compile }}{{ $args = concat $args (list "--pipeline" "/tmp/pipeline.yaml") }}{{ end -}}
{{- if $ca }}{{ $args = concat $args (list "--ca-cert" "/etc/qlora/ca/ca.crt") }}{{ end -}}
serviceAccountName: {{ include "qlora.serviceAccount" $root | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
restartPolicy: Never
securityContext: {{- include "qlora.podSecurity" $root | nindent 2 }}
{{- with include "qlora.placement" $root | trim }}{{ . | nindent 0 }}{{ end }}
{{- if $compile }}
initContainers:
  - name: compile
    image: {{ include "qlora.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: [qlora, compile, /tmp/pipeline.yaml]
    args: {{ toJson $compile }}
    env:
      - {name: HOME, value: /tmp}
      - {name: QLORA_IMAGE_REGISTRY, value: {{ $root.Values.image.registry | quote }}}
    securityContext: {{- include "qlora.containerSecurity" $root | nindent 6 }}
    resources: {{- toYaml $root.Values.jobs.resources | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
{{- end }}
containers:
  - name: qlora
    image: {{ include "qlora.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: {{ .command | default (list "qlora") | toJson }}
    args: {{ toJson $args }}
    envFrom:
      - configMapRef: {name: {{ include "qlora.configMap" $root }}}
    env:
      - {name: HOME, value: /tmp}
      {{- if $kfp }}
      - {name: KF_PIPELINES_ENDPOINT, value: {{ $root.Values.kfp.endpoint | quote }}}
      - {name: KF_PIPELINES_SA_TOKEN_PATH, value: /var/run/secrets/kubeflow/pipelines/token}
      {{- end }}
      {{- if has "pipeline" .needs }}
      - {name: QLORA_IMAGE_REGISTRY, value: {{ $root.Values.image.registry | quote }}}
      {{- end }}
      {{- if has "store" .needs }}
      {{- include "qlora.storeEnv" $root | nindent 6 }}
      {{- end }}
      {{- if has "mlflow" .needs }}
      {{- range list "MLFLOW_TRACKING_USERNAME" "MLFLOW_TRACKING_PASSWORD" }}
      {{- include "qlora.secretEnv" (list . (include "qlora.mlflowSecret" $root) . true) | nindent 6 }}
      {{- end }}
      {{- end }}
      {{- if has "mlflow-admin" .needs }}
      {{- range list "MLFLOW_TRACKING_USERNAME" "MLFLOW_TRACKING_PASSWORD" }}
      {{- include "qlora.secretEnv" (list . $root.Values.mlflow.auth.adminSecret . false) | nindent 6 }}
      {{- include "qlora.secretEnv" (list (replace "MLFLOW_TRACKING" "QLORA_MLFLOW" .) (include "qlora.mlflowSecret" $root) . false) | nindent 6 }}
      {{- end }}
      {{- end }}
      {{- if has "hub" .needs }}
      {{- include "qlora.secretEnv" (list "HF_TOKEN" (include "qlora.hubSecret" $root) "HF_TOKEN" true) | nindent 6 }}
      {{- end }}
    securityContext: {{- include "qlora.containerSecurity" $root | nindent 6 }}
    resources: {{- toYaml $root.Values.jobs.resources | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- if $kfp }}
      - {name: kfp-token, mountPath: /var/run/secrets/kubeflow/pipelines, readOnly: true}
      {{- end }}
      {{- if has "store" .needs }}{{ with include "qlora.storeMounts" $root }}{{ . | nindent 6 }}{{ end }}{{ end }}
      {{- if .config }}
      - {name: config, mountPath: /etc/qlora/run, readOnly: true}
      {{- end }}
      {{- if $ca }}
      - {name: ca, mountPath: /etc/qlora/ca, readOnly: true}
      {{- end }}
volumes:
  - {name: tmp, emptyDir: {}}
  {{- if $kfp }}
  - name: kfp-token
    projected:
      sources:
        - serviceAccountToken: {path: token, audience: {{ $root.Values.kfp.tokenAudience | quote }}, expirationSeconds: 7200}
  {{- end }}
  {{- if has "store" .needs }}{{ with include "qlora.storeVolumes" $root }}{{ . | nindent 2 }}{{ end }}{{ end }}
  {{- if .config }}
  - name: config
    configMap: {name: {{ .config }}}
  {{- end }}
  {{- if $ca }}
  - name: ca
    configMap: {name: {{ $root.Values.kfp.caConfigMap | quote }}}
  {{- end }}
{{- end }}

{{/* A job's spec around that pod. */}}
{{- define "qlora.jobSpec" -}}
backoffLimit: 3
# Exit code 2 is a usage error, which no retry fixes.
podFailurePolicy:
  rules:
    - action: FailJob
      onExitCodes: {containerName: qlora, operator: In, values: [2]}
activeDeadlineSeconds: {{ int64 .root.Values.jobs.timeoutSeconds }}
template: {{- include "qlora.jobPod" . | nindent 2 }}
{{- end }}
