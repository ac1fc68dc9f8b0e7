{{/* The names that pipelines/placement.py reads; one release a namespace, because they are fixed. */}}
{{- define "qlora.configMap" -}}qlora-pipelines{{- end }}
{{- define "qlora.hubSecret" -}}qlora-hub-token{{- end }}
{{- define "qlora.s3Secret" -}}qlora-s3{{- end }}
{{- define "qlora.mlflowSecret" -}}qlora-mlflow{{- end }}
{{- define "qlora.signingSecret" -}}qlora-signing-key{{- end }}
{{- define "qlora.signingFolder" -}}/etc/qlora/signing{{- end }}
{{- define "qlora.stepLabel" -}}qlora-pipelines/step{{- end }}

{{/* 22 characters leave room for `-trigger-` and 20 of a trigger's name: a CronJob's may have 52. */}}
{{- define "qlora.name" -}}{{ .Release.Name | trunc 22 | trimSuffix "-" }}{{- end }}

{{- define "qlora.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: qlora-pipelines
{{ include "qlora.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "qlora.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* A pod's labels, of (list CONTEXT COMPONENT). KFP's own pods stay out of Istio's mesh too: a sidecar would keep a job from ending. */}}
{{- define "qlora.podLabels" -}}
{{ include "qlora.selector" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/part-of: qlora-pipelines
sidecar.istio.io/inject: "false"
{{- end }}

{{- define "qlora.image" -}}
{{- $image := .Values.image -}}
{{- if and $image.requireDigest (not $image.digest) -}}
{{- fail "image.digest: image.requireDigest asks for one; give the image's sha256:…" -}}
{{- end -}}
{{ $image.registry }}/cpu:{{ $image.tag | default .Chart.AppVersion }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "qlora.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "qlora.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* The runs' service account; empty: KFP's own. */}}
{{- define "qlora.runsServiceAccount" -}}
{{- $account := .Values.runs.serviceAccount -}}
{{ $account.name | default (ternary (printf "%s-runs" (include "qlora.name" .)) "" $account.create) }}
{{- end }}

{{- define "qlora.mlflowUri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "qlora.name" . }}-mlflow.{{ .Release.Namespace }}:{{ .Values.mlflow.port }}
{{- else -}}
{{ .Values.mlflow.externalUri }}
{{- end }}
{{- end }}

{{/* Numbers of values are floats to Helm, and from a million on it writes them as 1e+06: hence int64 wherever one is written. */}}

{{/* What every pod of the chart has: no rights, no root, nothing to write but /tmp. */}}
{{- define "qlora.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.runAsUser }}
runAsGroup: {{ int64 .Values.runAsUser }}
fsGroup: {{ int64 .Values.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "qlora.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "qlora.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* One environment variable from a secret, of (list NAME SECRET KEY OPTIONAL). */}}
{{- define "qlora.secretEnv" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ index . 1 | quote }}
      key: {{ index . 2 | quote }}
      {{- if index . 3 }}
      optional: true
      {{- end }}
{{- end }}

{{/* Keys of the store; without them boto3 asks the cloud by the service account. */}}
{{- define "qlora.s3Env" -}}
{{ include "qlora.secretEnv" (list "AWS_ACCESS_KEY_ID" (include "qlora.s3Secret" .) "AWS_ACCESS_KEY_ID" true) }}
{{ include "qlora.secretEnv" (list "AWS_SECRET_ACCESS_KEY" (include "qlora.s3Secret" .) "AWS_SECRET_ACCESS_KEY" true) }}
{{- end }}

{{/* libpq reads the login from its own variables: no password in an address, an argument or a file. */}}
{{- define "qlora.databaseEnv" -}}
{{- with .Values.mlflow.database -}}
{{- if .host -}}
{{ include "qlora.secretEnv" (list "PGUSER" .secret .usernameKey false) }}
{{ include "qlora.secretEnv" (list "PGPASSWORD" .secret .passwordKey false) }}
- {name: PGSSLMODE, value: {{ .sslMode }}}
{{- end }}
{{- end }}
{{- end }}
