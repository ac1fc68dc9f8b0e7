{{/* The names that pipelines/placement.py reads; one release a namespace, because they are fixed. */}}
{{- define "qlora.configMap" -}}qlora-pipelines{{- end }}
{{- define "qlora.hubSecret" -}}qlora-hub-token{{- end }}
{{- define "qlora.s3Secret" -}}qlora-s3{{- end }}
{{- define "qlora.gcsSecret" -}}qlora-gcs{{- end }}
{{- define "qlora.gcsFolder" -}}/etc/qlora/gcs{{- end }}
{{- define "qlora.azureSecret" -}}qlora-azure{{- end }}
{{- define "qlora.mlflowSecret" -}}qlora-mlflow{{- end }}
{{/* Whether the MLflow here has an administrator whose login is not that of the runs; empty: no. */}}
{{- define "qlora.mlflowUser" -}}
{{- $auth := .Values.mlflow.auth -}}
{{- if and .Values.mlflow.enabled $auth.enabled (ne $auth.adminSecret (include "qlora.mlflowSecret" .)) }}true{{ end -}}
{{- end }}
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
{{- with (index . 0).Values.podLabels }}
{{ toYaml . }}
{{- end }}
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

{{/* Keys of the store and of the data; without them the cloud is asked by the service account. */}}
{{- define "qlora.storeEnv" -}}
{{ include "qlora.secretEnv" (list "AWS_ACCESS_KEY_ID" (include "qlora.s3Secret" .) "AWS_ACCESS_KEY_ID" true) }}
{{ include "qlora.secretEnv" (list "AWS_SECRET_ACCESS_KEY" (include "qlora.s3Secret" .) "AWS_SECRET_ACCESS_KEY" true) }}
{{ include "qlora.secretEnv" (list "AZURE_STORAGE_ACCESS_KEY" (include "qlora.azureSecret" .) "AZURE_STORAGE_ACCESS_KEY" true) }}
{{- end }}

{{/* The file of a Google service account's key, where one is named. */}}
{{- define "qlora.gcsKeyPath" -}}
{{- with .Values.store.gcsKeyFile }}{{ include "qlora.gcsFolder" $ }}/{{ . }}{{ end }}
{{- end }}

{{- define "qlora.storeMounts" -}}
{{- if .Values.store.gcsKeyFile -}}
- {name: gcs-key, mountPath: {{ include "qlora.gcsFolder" . }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "qlora.storeVolumes" -}}
{{- if .Values.store.gcsKeyFile -}}
- name: gcs-key
  secret: {secretName: {{ include "qlora.gcsSecret" . }}, optional: true}
{{- end }}
{{- end }}

{{/* An address of the store, of (list CONTEXT URI), as MLflow reads it: of Azure that is wasbs://, see components/core/registry/sources.py. */}}
{{- define "qlora.mlflowAddress" -}}
{{- $store := (index . 0).Values.store -}}
{{- $clouds := "windows\\.net|chinacloudapi\\.cn|usgovcloudapi\\.net" -}}
{{- $uri := regexReplaceAll (printf "^abfss://([^@/]+)@([^./]+)\\.dfs\\.core\\.(%s)" $clouds) (index . 1) "wasbs://${1}@${2}.blob.core.${3}" -}}
{{- $cloud := regexFind $clouds $store.azureEndpoint | default "windows.net" -}}
{{- regexReplaceAll "^az://([^/]+)" $uri (printf "wasbs://${1}@%s.blob.core.%s" $store.azureAccount $cloud) -}}
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
